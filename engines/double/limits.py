"""The fixed sizes of an engine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The fixed sizes of an engine; names as vLLM's arguments."""

    block_size: int = 16
    """tokens per KV block"""
    num_blocks: int = 4096
    """KV blocks, the null block included"""
    max_model_len: int = 32768
    """longest prompt + answer, tokens"""
    max_num_seqs: int = 256
    """sequences that run at once"""
    max_num_queued_reqs: int | None = None
    """sequences in the engine beyond which a request is refused with 503"""
    max_num_batched_tokens: int = 8192
    """prompt tokens computed in one step"""
    kv_bytes_per_token: int = 131072
    """what a token's KV weighs in a transfer (Llama 3 8B in 16 bit)"""
    eos_one_in: int = 0
    """an answer ends by itself after this many tokens on average; 0: only at its limit"""

    def __post_init__(self) -> None:
        if (self.num_blocks - 1) * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_size} tokens cannot hold max_model_len={self.max_model_len}: "
                "raise num_blocks or lower max_model_len"
            )
