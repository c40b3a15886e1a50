"""`session`: a conversation stays where it began.

Formula: rendezvous hashing: of all engines that have at most 1.25 times the mean of requests (and always the least
busy), the one with the largest hash of (conversation, engine). Conversation = the session's id, or the hash of the
prompt's first blocks, or chance.
Source: rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni et al. 2018); DigitalOcean's
session affinity, production-stack.
Defaults: bound 1.25.
Flaws: knows nothing of what is cached: a long conversation that was evicted stays where it was.
"""

import math
from collections.abc import Sequence
from zlib import crc32

from policies.contract import Engine, Request
from policies.staged import Staged

BOUND = 1.25


class Session(Staged):
    """The conversation's own engine."""

    reason = "its conversation's engine"

    def prefilling(self, request: Request, engine: Engine) -> float:
        key = request.session or request.prefix or self.spread.getrandbits(32)
        return float(crc32(f"{key}|{engine.name}".encode()))

    decoding = prefilling

    def pick(self, request: Request, engines: Sequence[Engine], scores: dict[str, float]) -> str:
        busy = {engine.name: engine.prefill_requests + engine.decode_requests for engine in engines}
        limit = max(min(busy.values()), math.ceil(BOUND * (sum(busy.values()) + 1) / len(engines)) - 1)
        return super().pick(request, engines, {name: scores[name] for name in scores if busy[name] <= limit})
