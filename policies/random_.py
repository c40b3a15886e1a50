"""`random`: any prefill engine, any decode engine.

Formula: uniform.
Source: the baseline of every paper.
Defaults: none to set.
Flaws: blind to load and caches; of n requests on n engines one gets about ln n / ln ln n.
"""

from policies.contract import Engine, Request
from policies.staged import Staged


class Random(Staged):
    """Any engine."""

    reason = "at random"

    def prefilling(self, request: Request, engine: Engine) -> float:
        return 0.0

    decoding = prefilling
