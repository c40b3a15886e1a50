"""What pauses between tokens cost: a price that rises while there are more of them than may be, and falls while fewer.

A local prefill that takes longer than a decode step gives each decode beside it a pause more than twice as long as
usual, one for every 8192 tokens. A share of all decoded tokens may come after such a pause.
"""

import math

from policies.contract import Engine
from policies.formulas import decode_s

CHUNK = 8192
"""Tokens that vLLM prefills in one step, and so stalls decodes for: its default `max_num_batched_tokens`."""

LONG = 6.0
"""Decode steps: a shorter stall is the less noticed the shorter it is, a longer one costs what it takes."""

GAIN, MOST = 0.02, 10.0
"""How fast the price moves, and what one placement counts for at most, in what it may bring."""

MEMORY = 2048
"""Where stalls were lately is where they will be: over so many decode steps."""


class Stalls:
    """A virtual queue. `price`: of a second that a running decode is stalled, in seconds of TTFT."""

    def __init__(self, share: float, least: float, most: float) -> None:
        self.share, self.least, self.most = share, least, most
        self.price = min(1.0, most)
        self._seen: dict[str, tuple[float, float, float]] = {}

    def stalled_s(self, engine: Engine, work_s: float) -> float:
        """Seconds that a prefill of `work_s` seems to take from each decode beside it."""
        _, step_s = running(engine)
        return work_s * min(1.0, work_s / (LONG * step_s)) if step_s > 0 else work_s

    def rate(self, engine: str, now_s: float) -> float:
        """Seconds that a decode there was stalled, a second."""
        if engine not in self._seen:
            return 0.0
        rate, at_s, memory_s = self._seen[engine]
        return rate * math.exp(min(0.0, at_s - now_s) / memory_s)

    def placed(self, engine: Engine | None, prompt: int, work_s: float, answer: float, now_s: float) -> None:
        """After a placement: `engine` prefills beside its decodes (None: nothing stalls); each request gets `answer`
        tokens.
        """
        stalled = 0.0
        if engine is not None:
            busy, step_s = running(engine)
            if work_s > step_s:
                stalled = busy * (1.0 + (prompt - engine.cached_tokens) // CHUNK)
            memory_s = MEMORY * step_s
            rate = self.rate(engine.name, now_s)
            if len(self._seen) > 4096:  # engines come and go
                self._seen.clear()
            if memory_s > 0:
                rate += self.stalled_s(engine, work_s) / memory_s
                self._seen[engine.name] = rate, now_s, memory_s
        allowed = self.share * max(answer, 20.0)
        price = self.price * math.exp(GAIN * (min(stalled / allowed, MOST) - 1.0))
        self.price = min(max(price, self.least), self.most)


def running(engine: Engine) -> tuple[int, float]:
    """Requests that decode there now, and how long a step of theirs takes, seconds."""
    busy, speed = engine.decode_requests - engine.coming_requests, engine.speed
    held = engine.decode_tokens - engine.coming_tokens
    return busy, decode_s(speed.step_s, speed.sequence_s, speed.kv_s, busy, held)
