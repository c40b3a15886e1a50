"""How long things take on the double: three linear models, all of them zero unless set."""

from dataclasses import dataclass


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

    def prefill_s(self, uncached: int, context: int) -> float:
        """Seconds to compute `uncached` prompt tokens whose last one attends to `context` tokens."""
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
