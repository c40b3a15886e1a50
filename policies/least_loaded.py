"""`least_loaded`: the prefill engine with the least to prefill, the decode engine with the fewest requests.

Formula: prefill score = -(prefill_tokens + prefill_requests); decode score = -(decode_requests + prefill_requests),
then -decode_tokens; ties are broken at random.
Source: join-the-shortest-queue, with tokens as the length of a prefill queue because prefill time grows with them.
Defaults: none to set.
Flaws: blind to caches: it recomputes a prefix that another engine holds.
"""

from policies.contract import Engine, Request
from policies.staged import Staged


class LeastLoaded(Staged):
    """The least loaded engine of each stage."""

    reason = "least loaded"

    def prefilling(self, request: Request, engine: Engine) -> float:
        return -float(engine.prefill_tokens + engine.prefill_requests)

    def decoding(self, request: Request, engine: Engine) -> float:
        busy = engine.decode_requests + engine.prefill_requests
        return -busy - engine.decode_tokens / (engine.decode_tokens + 1e6)  # the fraction only breaks ties

    collocated = decoding
