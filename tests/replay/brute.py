"""The same engine as `engines.model.core`, one token at a time: slow, plain, and independent of its closed forms.

No prefix is shared and memory never runs out: those are tested elsewhere.
"""

from dataclasses import dataclass, field

from engines.model.profile import Profile


@dataclass
class Task:
    """A prompt and its answer."""

    arrives_s: float
    prompt: int
    answer: int
    done: int = 0
    made: int = 0
    times: list[float] = field(default_factory=list)


def run(profile: Profile, tasks: list[Task]) -> None:
    """Serve all of them on one engine; notes when each token came."""
    waiting = sorted(tasks, key=lambda task: task.arrives_s)
    prefilling: list[Task] = []
    running: list[Task] = []
    now = 0.0
    while waiting or prefilling or running:
        if not prefilling and not running:
            now = max(now, waiting[0].arrives_s)
        while waiting and waiting[0].arrives_s <= now:
            prefilling.append(waiting.pop(0))
        left = profile.chunk_tokens - len(running)
        chunks: list[tuple[Task, int]] = []
        for task in prefilling:
            count = min(left, task.prompt - task.done)
            if count <= 0:
                break
            chunks.append((task, count))
            left -= count
        work = sum(
            profile.token_s * count + profile.context_s * count * (task.done + count / 2) for task, count in chunks
        )
        held = sum(task.prompt + task.made for task in running)
        took = profile.step_s + profile.sequence_s * len(running) + profile.kv_s * held
        now += took + work * (profile.mix if running else 1.0)
        for task in running:
            task.made += 1
            task.times.append(now)
        running = [task for task in running if task.made < task.answer]
        for task, count in chunks:
            task.done += count
            if task.done == task.prompt:
                prefilling.remove(task)
                task.made = 1
                task.times.append(now)
                if task.answer > 1:
                    running.append(task)
