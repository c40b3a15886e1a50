"""`round_robin`: prefill and decode engines in turn.

Formula: the k-th request of a stage with n engines goes to engine k mod n; each stage has its own k.
Source: the default of most proxies, and of `vllm-router --policy round_robin`.
Defaults: none to set.
Flaws: blind to load and to caches: one long prompt delays all that follow it on its engine.
"""

from collections.abc import Sequence

from policies.contract import Engine, Request
from policies.deciders import Decider
from policies.staged import Staged


class RoundRobin(Staged):
    """Each stage's engines in turn."""

    reason = "in turn"

    def __init__(self, seed: int | None = None, decider: Decider | None = None) -> None:
        super().__init__(seed, decider)
        self._turn = {False: 0, True: 0}

    def prefilling(self, request: Request, engine: Engine) -> float:
        return 0.0

    decoding = prefilling

    def pick(self, request: Request, engines: Sequence[Engine], scores: dict[str, float]) -> str:
        stage = all(engine.role == "prefill" for engine in engines)
        turn = self._turn[stage]
        self._turn[stage] = turn + 1
        return engines[turn % len(engines)].name
