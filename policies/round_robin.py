"""`round_robin`: prefill and decode engines in turn.

Formula: the k-th request of a pool of n engines goes to engine k mod n; each pool has its own k.
Source: the default of most proxies, and of `vllm-router --policy round_robin`.
Defaults: none to set.
Flaws: blind to load and to caches: one long prompt delays all that follow it on its engine.
"""

from itertools import count

from policies.choose import without
from policies.contract import Fleet, Placement, Request


class RoundRobin:
    """Each pool of engines in turn."""

    def __init__(self) -> None:
        self._prefills = count()
        self._decodes = count()

    def place(self, request: Request, fleet: Fleet) -> Placement:
        decoders = fleet.decoders
        decode = decoders[next(self._decodes) % len(decoders)].name
        if request.whole:
            return Placement(decode=decode, reason="in turn, whole")
        prefillers = without(fleet.prefillers, decode)
        if not prefillers:
            return Placement(decode=decode, reason="in turn, no other engine prefills")
        prefill = prefillers[next(self._prefills) % len(prefillers)].name
        return Placement(prefill=prefill, decode=decode, reason="in turn")
