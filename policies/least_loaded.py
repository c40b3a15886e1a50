"""`least_loaded`: the prefill engine with the least to prefill, the decode engine with the fewest requests.

Formula: prefill score = -prefill_tokens, then -prefill_requests; decode score = -(decode_requests + prefill_requests),
then -decode_tokens; ties are broken at random.
Source: join-the-shortest-queue, with tokens as the length of a prefill queue because prefill time grows with them.
Defaults: none to set.
Flaws: blind to caches: it recomputes a prefix that another engine holds.
"""

import random

from policies.choose import best, scores, without
from policies.contract import Engine, Fleet, Placement, Request


def _prefill(engine: Engine) -> float:
    return -float(engine.prefill_tokens + engine.prefill_requests)


def _decode(engine: Engine) -> float:
    busy = engine.decode_requests + engine.prefill_requests
    return -busy - engine.decode_tokens / (engine.decode_tokens + 1e6)  # the fraction only breaks ties


class LeastLoaded:
    """The least loaded engine of each pool."""

    def __init__(self, seed: int | None = None) -> None:
        self._spread = random.Random(seed)

    def place(self, request: Request, fleet: Fleet) -> Placement:
        decoders = fleet.decoders
        decode = best(decoders, _decode, self._spread)
        prefillers = () if request.whole else without(fleet.prefillers, decode.name)
        if not prefillers:
            why = "least loaded, whole" if request.whole else "least loaded, no other engine prefills"
            return Placement(decode=decode.name, reason=why, scores=scores(decoders, _decode))
        prefill = best(prefillers, _prefill, self._spread)
        return Placement(
            prefill=prefill.name,
            decode=decode.name,
            reason="least loaded",
            scores=scores(decoders, _decode) | scores(prefillers, _prefill),
        )
