"""`weighted`: a weighted sum of cache hit, short queue and free KV memory.

Formula: 3 * hit + 2 * (1 - queue) + 2 * (1 - KV usage); hit = cached / prompt; queue = requests there over the most of
any candidate; usage = tokens held over capacity (over the most of any candidate where that is unknown).
Source: the default of llm-d's Helm chart (prefix, queue and KV-utilisation scorers).
Defaults: weights 3, 2, 2.
Flaws: the weights compare what has no common unit; normalising makes a queue of 2 against 1 weigh as 200 against 100.
"""

from policies.contract import Engine, Fleet, Request
from policies.staged import Staged


class Weighted(Staged):
    """The highest weighted sum."""

    reason = "highest weighted sum"
    weights = (3.0, 2.0, 2.0)

    def look(self, request: Request, fleet: Fleet) -> None:
        self._queue = max(e.prefill_requests + e.decode_requests for e in fleet.engines) or 1
        self._held = max(e.decode_tokens for e in fleet.engines) or 1

    def prefilling(self, request: Request, engine: Engine) -> float:
        prefix, queue, usage = self.weights
        hit = engine.cached_tokens / max(1, request.prompt_tokens)
        waits = (engine.prefill_requests + engine.decode_requests) / self._queue
        used = min(1.0, engine.decode_tokens / (engine.kv_tokens or self._held))
        return prefix * hit + queue * (1 - waits) + usage * (1 - used)

    decoding = prefilling
