"""`kv_cost`: the fewest blocks to compute and to hold.

Formula: cost = max(0, prefill_tokens + prompt - credit) + decode_tokens, in blocks; credit = 1.0 of the cached tokens,
0.75 of those on host memory. Decode by load alone; with a decider by the same cost, so that locality counts.
Source: NVIDIA Dynamo's KV router (`kv_router/scheduler`).
Defaults: credits as above; lowest cost, ties at random.
Flaws: decode engines are chosen blindly, so their caches are never hit; a token in the queue weighs as one in the cache
whatever the engine's speed; loses its hits as a fleet grows.
"""

from policies.contract import Engine, Request
from policies.staged import Staged

HOST_CREDIT = 0.75


class KvCost(Staged):
    """The cheapest engine in blocks."""

    reason = "fewest blocks"
    credit = 1.0

    def prefilling(self, request: Request, engine: Engine) -> float:
        slower = max(0, engine.offloaded_tokens - engine.cached_tokens)
        credit = self.credit * engine.cached_tokens + HOST_CREDIT * slower
        work = max(0.0, engine.prefill_tokens + request.prompt_tokens - credit)
        return -(work + engine.decode_tokens) / request.block_size

    def decoding(self, request: Request, engine: Engine) -> float:
        if self.decider.near:
            return self.prefilling(request, engine)
        return -(engine.decode_tokens + engine.prefill_tokens) / request.block_size
