"""`lmetric`: least work to do, counting what is cached; no knobs.

Formula: prefill score = -(uncached tokens of this request + prefill_tokens) x (requests there + 1); decode score =
-(decode_requests + prefill_requests), ties to the engine that holds more of the prompt, then at random.
Source: LMetric, arXiv 2603.15202 (prefill); least requests for decode, as most routers do.
Defaults: none to set.
Flaws: knows neither how fast an engine is nor when a local prefill would be quicker; a long cached prefix can outweigh
a queue that its product does not see.
"""

from policies.contract import Engine, Request
from policies.staged import Staged


class LMetric(Staged):
    """The prefill engine with the least work, the decode engine with the fewest requests."""

    reason = "least work"

    def prefilling(self, request: Request, engine: Engine) -> float:
        new = request.prompt_tokens - engine.cached_tokens
        return -float((new + engine.prefill_tokens) * (engine.prefill_requests + engine.decode_requests + 1))

    def decoding(self, request: Request, engine: Engine) -> float:
        busy = engine.decode_requests + engine.prefill_requests
        return engine.cached_tokens / (engine.cached_tokens + 1e6) - busy  # the fraction only breaks ties
