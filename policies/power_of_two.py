"""`power_of_two`: of two engines at random, the one with fewer requests.

Formula: argmin of requests in flight over two engines drawn without replacement, in each stage.
Source: Mitzenmacher 2001; the default of Ray Serve.
Defaults: two candidates.
Flaws: blind to caches, and to how long a prompt is.
"""

from collections.abc import Sequence

from policies.contract import Engine, Request
from policies.staged import Staged


class PowerOfTwo(Staged):
    """The less busy of two."""

    reason = "less busy of two"

    def prefilling(self, request: Request, engine: Engine) -> float:
        return -float(engine.prefill_requests + engine.decode_requests)

    decoding = prefilling

    def pick(self, request: Request, engines: Sequence[Engine], scores: dict[str, float]) -> str:
        drawn = self.spread.sample(list(scores), min(2, len(scores)))
        return super().pick(request, engines, {name: scores[name] for name in drawn})
