"""How long things take on the double: linear models, all of them zero unless set.

`Timing.of` takes them from a profile; the double then keeps the time that `baton replay` foretells.
"""

from dataclasses import dataclass
from typing import Self

from engines.model.profile import Profile


@dataclass
class Timing:
    """Durations in seconds; every coefficient may be changed while the double runs. Zero is as fast as possible."""

    prefill_a_s: float = 0.0
    """per prefill chunk"""
    prefill_b_s: float = 0.0
    """per uncached prompt token"""
    prefill_c_s: float = 0.0
    """per uncached prompt token and token of context"""
    decode_a_s: float = 0.0
    """per decode step"""
    decode_b_s: float = 0.0
    """per sequence in the step's batch"""
    decode_c_s: float = 0.0
    """per token of KV read by the step"""
    transfer_latency_s: float = 0.0
    """per transfer"""
    transfer_bytes_per_s: float = 0.0
    """bandwidth of a transfer; 0 is without limit"""
    unreachable_s: float = 0.0
    """until a transfer from an engine that cannot be reached fails (the real one: 10 s, or 4 s after a handshake)"""
    step_s: float = 0.0
    """per step, whatever is in it"""
    mix: float = 1.0
    """factor on prompts in a step that decodes too"""
    join_s: float = 0.0
    """per pulled request, in its first step"""
    leg_s: float = 0.0
    """from a request's arrival to the queue: what HTTP and tokenising take beyond what they take here"""
    second_leg_s: float = 0.0
    """the same where KV is to be pulled, with the set-up of that"""

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """As a profile says."""
        return cls(
            prefill_b_s=profile.token_s,
            prefill_c_s=profile.context_s,
            step_s=profile.step_s,
            mix=profile.mix,
            join_s=profile.join_s,
            leg_s=profile.leg_s,
            second_leg_s=profile.second_leg_s,
            decode_b_s=profile.sequence_s,
            decode_c_s=profile.kv_s,
            transfer_latency_s=profile.link_latency_us * 1e-6,
            transfer_bytes_per_s=profile.link_gbps * 1e9 / 8,
        )

    def prefill_s(self, uncached: int, context: float) -> float:
        """Seconds to compute `uncached` prompt tokens that attend to `context` tokens on average."""
        if not uncached:
            return 0.0
        return self.prefill_a_s + self.prefill_b_s * uncached + self.prefill_c_s * uncached * context

    def decode_s(self, batch: int, kv_tokens: int) -> float:
        """Seconds of one step that gives each of `batch` sequences, holding `kv_tokens` in all, a token."""
        if not batch:
            return 0.0
        return self.decode_a_s + self.decode_b_s * batch + self.decode_c_s * kv_tokens

    def transfer_s(self, size_bytes: int) -> float:
        """Seconds to pull `size_bytes` of KV."""
        flow_s = size_bytes / self.transfer_bytes_per_s if self.transfer_bytes_per_s else 0.0
        return self.transfer_latency_s + flow_s
