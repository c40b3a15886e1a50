"""`cache_aware`: the best hit while loads are even, the least loaded engine otherwise.

Formula: uneven if max - min requests > 64 and max > 1.5 * min: fewest requests. Else, if the best hit is more than half
of the prompt: that engine. Else the engine to which the fewest new tokens were sent so far. Decode: fewest requests; as
for prefill where a decider may keep the prompt there.
Source: SGLang's router, `vllm-router --policy cache_aware`; its tree's size is the tokens that were sent.
Defaults: 64, 1.5, 0.5.
Flaws: below 64 requests of difference it never looks at load, so a hot prefix piles up on one engine; a hit of 0.49 is
worth nothing.
"""

from collections.abc import Sequence

from policies.contract import Engine, Request
from policies.deciders import Decider
from policies.staged import Staged

ABSOLUTE, RELATIVE, HIT = 64, 1.5, 0.5


class CacheAware(Staged):
    """The longest match, while loads are even."""

    reason = "longest match while even"

    def __init__(self, seed: int | None = None, decider: Decider | None = None) -> None:
        super().__init__(seed, decider)
        self._sent: dict[str, int] = {}

    def prefilling(self, request: Request, engine: Engine) -> float:
        return engine.cached_tokens / max(1, request.prompt_tokens)

    def decoding(self, request: Request, engine: Engine) -> float:
        if self.decider.near:
            return self.prefilling(request, engine)
        return -float(engine.decode_requests + engine.prefill_requests)

    def pick(self, request: Request, engines: Sequence[Engine], scores: dict[str, float]) -> str:
        if not (self.decider.near or any(engine.prefills for engine in engines)):
            return super().pick(request, engines, scores)
        busy = {e.name: -float(e.prefill_requests + e.decode_requests) for e in engines}
        most, least = -min(busy.values()), -max(busy.values())
        if most - least > ABSOLUTE and most > RELATIVE * least:
            name = super().pick(request, engines, busy)
        elif max(scores.values()) > HIT:
            name = super().pick(request, engines, scores)
        else:
            name = super().pick(request, engines, {e.name: -float(self._sent.get(e.name, 0)) for e in engines})
        chosen = next(engine for engine in engines if engine.name == name)
        if len(self._sent) > 4 * len(engines):
            self._sent = {e.name: self._sent.get(e.name, 0) for e in engines}
        self._sent[name] = self._sent.get(name, 0) + request.prompt_tokens - chosen.cached_tokens
        return name
