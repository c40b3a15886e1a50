"""The modelled engine: equal to a brute-force one, and nothing is lost in it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.model.core import Core
from engines.model.profile import Profile
from engines.model.sequence import Sequence
from tests.replay.brute import Task, run

PROFILE = Profile(
    token_s=1e-5, context_s=2e-10, step_s=6e-3, sequence_s=8e-5, kv_s=6e-9, mix=1.3, chunk_tokens=2048, join_s=1e-3
)
TASKS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 6000), st.integers(1, 80)).map(lambda row: Task(*row)),
    min_size=1,
    max_size=12,
    unique_by=lambda task: task.arrives_s,  # of two at the same moment the first finds an idle engine
)


def drive(core: Core, arrivals: list[tuple[float, Sequence]]) -> None:
    """Feed a core until it has nothing left to do; time never runs back."""
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    now = 0.0
    while arrivals or not core.idle:
        if arrivals and arrivals[0][0] <= core.due_s:
            at, sequence = arrivals.pop(0)
            assert at >= now
            now = at
            core.submit(sequence, now)
        else:
            assert core.due_s >= now
            now = core.due_s
            core.fire()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tasks=TASKS)
def test_every_token_comes_when_a_brute_force_engine_makes_it(tasks: list[Task]) -> None:
    firsts: dict[int, float] = {}
    lasts: dict[int, float] = {}

    def ended(sequence: Sequence, now: float) -> None:
        lasts[id(sequence.owner)] = now
        core.release(sequence, now)

    core = Core(PROFILE, 100_000, 16, on_first=lambda s, now: firsts.__setitem__(id(s.owner), now), on_end=ended)
    drive(core, [(task.arrives_s, Sequence(task, task.prompt, task.answer, ())) for task in tasks])
    run(PROFILE, tasks)
    for task in tasks:
        assert firsts[id(task)] == pytest.approx(task.times[0], rel=1e-9)
        assert lasts[id(task)] == pytest.approx(task.times[-1], rel=1e-9)
        assert len(task.times) == task.answer
    gaps = sum(count for _, count in core.gaps)
    assert gaps == sum(task.answer - 1 for task in tasks)
    between = sum(task.times[-1] - task.times[0] for task in tasks)
    assert sum(value * count for value, count in core.gaps) == pytest.approx(between, rel=1e-9, abs=1e-9)
    assert core.prefill_tokens == sum(task.prompt for task in tasks)
    assert (core.running, core.kv_tokens, core.blocks.used, core.due_s) == (0, 0, 0, math.inf)


def test_who_waits_behind_a_prompt_finds_its_blocks() -> None:
    """Prompts of three steps: one in the step that ends the first, one that shares a part and comes after another."""
    names = tuple(range(375))
    same = [Sequence(at, 6000, 1, names) for at in range(2)]
    other, part = Sequence(2, 6000, 1, tuple(range(400, 775))), Sequence(3, 1600, 1, names[:50])
    core = Core(PROFILE, 2000, 16, on_end=lambda s, now: core.release(s, now))
    drive(core, [(0.0, sequence) for sequence in (*same, other, part)])
    assert [sequence.cached for sequence in (*same, other, part)] == [0, 5984, 0, 800]
    assert core.prefill_tokens == 6000 + 16 + 6000 + 800
    core.blocks.check()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 3), st.integers(0, 3), st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=20
    )
)
def test_a_full_engine_serves_everybody_in_turn(rows: list[tuple[float, int, int, int]]) -> None:
    ended: list[Sequence] = []

    def end(sequence: Sequence, now: float) -> None:
        ended.append(sequence)
        core.release(sequence, now)
        core.blocks.check()

    core = Core(PROFILE, 40, 16, on_end=end)
    arrivals = []
    for at, family, prompt, answer in rows:
        names = tuple(1000 * family + index for index in range((prompt + answer) // 16))
        arrivals.append((at, Sequence(None, prompt, answer, names)))
    drive(core, arrivals)
    assert len(ended) == len(rows)
    assert not core.waiting
    assert core.blocks.used == 0
    for sequence in ended:
        assert sequence.arrived_s <= sequence.first_s <= sequence.last_s
        assert sequence.cached < sequence.prompt


def test_what_can_never_fit_is_refused() -> None:
    core = Core(PROFILE, 4, 16)
    with pytest.raises(ValueError, match="do not fit"):
        core.submit(Sequence(None, 60, 10, ()), 0.0)


def test_a_slow_engine_takes_its_time() -> None:
    ends: list[float] = []
    for slow in (1.0, 5.0):
        core = Core(PROFILE, 100, 16, on_end=lambda _, now: ends.append(now))
        core.slow = slow
        drive(core, [(0.0, Sequence(None, 100, 20, ()))])
    assert ends[1] == pytest.approx(5 * ends[0])
