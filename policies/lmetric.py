"""`lmetric`: least work to do, counting what is cached; no knobs.

Formula: prefill score = -(uncached tokens of this request + prefill_tokens) x (requests there + 1); decode score =
-(decode_requests + prefill_requests), ties to the engine that holds more of the prompt, then at random.
Source: LMetric, arXiv 2603.15202 (prefill); least requests for decode, as most routers do.
Defaults: none to set.
Flaws: knows neither how fast an engine is nor when a local prefill would be quicker; a long cached prefix can outweigh
a queue that its product does not see.
"""

import random

from policies.choose import best, scores, without
from policies.contract import Engine, Fleet, Placement, Request


def _decode(engine: Engine) -> float:
    busy = engine.decode_requests + engine.prefill_requests
    return engine.cached_tokens / (engine.cached_tokens + 1e6) - busy  # the fraction only breaks ties


class LMetric:
    """The prefill engine with the least work, the decode engine with the fewest requests."""

    def __init__(self, seed: int | None = None) -> None:
        self._spread = random.Random(seed)

    def place(self, request: Request, fleet: Fleet) -> Placement:
        def prefilling(engine: Engine) -> float:
            new = request.prompt_tokens - engine.cached_tokens
            return -float((new + engine.prefill_tokens) * (engine.prefill_requests + engine.decode_requests + 1))

        decoders = fleet.decoders
        decode = best(decoders, _decode, self._spread)
        prefillers = () if request.whole else without(fleet.prefillers, decode.name)
        if not prefillers:
            why = "fewest requests, whole" if request.whole else "fewest requests, no other engine prefills"
            return Placement(decode=decode.name, reason=why, scores=scores(decoders, _decode))
        prefill = best(prefillers, prefilling, self._spread)
        return Placement(
            prefill=prefill.name,
            decode=decode.name,
            reason="most cached" if prefill.cached_tokens else "least work",
            scores=scores(decoders, _decode) | scores(prefillers, prefilling),
        )
