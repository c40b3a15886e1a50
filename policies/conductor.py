"""`conductor`: the least time to the first token.

Formula: TTFT = transfer + queue + prefill(prompt, cached); queue = booked prefill seconds; prefill by the engine's
fitted speed. Decode: the shortest step with this request in it.
Source: Mooncake, FAST 25, algorithm 1 (without its migration of blocks between prefill engines, and without refusing).
Defaults: none to set.
Flaws: its price of a prefill is the engine's time alone, not what those pay who come after; chooses the decode engine
without regard to what it holds.
"""

from policies.contract import Engine, Request
from policies.staged import Staged


class Conductor(Staged):
    """The shortest predicted TTFT."""

    reason = "least predicted TTFT"

    def prefilling(self, request: Request, engine: Engine) -> float:
        cached = engine.cached_tokens
        return -(engine.prefill_s + engine.speed.prefill_s(max(0, request.prompt_tokens - cached), cached))

    def decoding(self, request: Request, engine: Engine) -> float:
        step = engine.speed.decode_s(engine.decode_requests + 1, engine.decode_tokens + request.prompt_tokens)
        return -(step + engine.prefill_s)
