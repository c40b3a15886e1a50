"""`sticky_until_saturated`: stay where most of the prompt is, until that costs too long a wait.

Formula: candidates = engines with hit >= 0.8 (all, if there is none); among them the fewest uncached tokens in flight.
If the candidate's queue is longer than the shortest of all by more than 18 s, all are candidates; queue = uncached
tokens in flight x seconds a token. Decode: fewest requests.
Source: llm-d's default since August 2026.
Defaults: 0.8, 18 s.
Flaws: 18 s is long where answers take one; below a hit of 0.8 a prefix is worth nothing.
"""

from collections.abc import Sequence

from policies.contract import Engine, Request
from policies.staged import Staged

HIT = 0.8
PATIENCE_S = 18.0


def _queue_s(engine: Engine) -> float:
    return engine.prefill_tokens * engine.speed.token_s


class StickyUntilSaturated(Staged):
    """Where the prompt is, within reason."""

    reason = "least in flight where it is cached"

    def prefilling(self, request: Request, engine: Engine) -> float:
        return -float(engine.prefill_tokens)

    def decoding(self, request: Request, engine: Engine) -> float:
        return -float(engine.decode_requests + engine.prefill_requests)

    def pick(self, request: Request, engines: Sequence[Engine], scores: dict[str, float]) -> str:
        near = [engine for engine in engines if engine.cached_tokens >= HIT * request.prompt_tokens]
        if near and any(engine.prefills for engine in engines):
            shortest = min(map(_queue_s, engines))
            kept = {engine.name: scores[engine.name] for engine in near}
            best = super().pick(request, near, kept)
            if next(_queue_s(e) for e in near if e.name == best) <= shortest + PATIENCE_S:
                return best
        return super().pick(request, engines, scores)
