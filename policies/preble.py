"""`preble`: exploit a long match, explore by predicted cost otherwise.

Formula: if the best hit is at least what is missing: among the engines with that hit, the least loaded. Else the least
of load + own cost: load = prefill seconds sent there in the last 3 minutes, own = prefill(prompt, cached). Decode:
fewest requests; as for prefill where a decider may keep the prompt there.
Source: Preble, ICLR 25 (E2, without its rebalancing and its estimate of what is evicted).
Defaults: window 180 s.
Flaws: what was sent three minutes ago weighs as what was sent now; exploits a match however long the queue is.
"""

from collections import deque
from collections.abc import Sequence

from policies.contract import Engine, Fleet, Request
from policies.deciders import Decider
from policies.staged import Staged

WINDOW_S = 180.0


class Preble(Staged):
    """Exploit, or explore."""

    reason = "longest match or least cost"

    def __init__(self, seed: int | None = None, decider: Decider | None = None) -> None:
        super().__init__(seed, decider)
        self._sent: deque[tuple[float, str, float]] = deque()
        self._load: dict[str, float] = {}
        self._now_s = 0.0

    def look(self, request: Request, fleet: Fleet) -> None:
        self._now_s = fleet.now_s
        while self._sent and self._sent[0][0] < fleet.now_s - WINDOW_S:
            _, name, cost = self._sent.popleft()
            self._load[name] -= cost

    def prefilling(self, request: Request, engine: Engine) -> float:
        return -(self._load.get(engine.name, 0.0) + _cost(request, engine))

    def decoding(self, request: Request, engine: Engine) -> float:
        if self.decider.near:
            return self.prefilling(request, engine)
        return -float(engine.decode_requests + engine.prefill_requests)

    def pick(self, request: Request, engines: Sequence[Engine], scores: dict[str, float]) -> str:
        if not (self.decider.near or any(engine.prefills for engine in engines)):
            return super().pick(request, engines, scores)
        longest = max(engine.cached_tokens for engine in engines)
        if longest and longest >= request.prompt_tokens - longest:
            near = [engine for engine in engines if engine.cached_tokens == longest]
            name = super().pick(request, near, {e.name: -self._load.get(e.name, 0.0) for e in near})
        else:
            name = super().pick(request, engines, scores)
        cost = _cost(request, next(engine for engine in engines if engine.name == name))
        self._sent.append((self._now_s, name, cost))
        self._load[name] = self._load.get(name, 0.0) + cost
        return name


def _cost(request: Request, engine: Engine) -> float:
    return engine.speed.prefill_s(max(0, request.prompt_tokens - engine.cached_tokens), engine.cached_tokens)
