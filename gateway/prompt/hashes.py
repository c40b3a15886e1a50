"""From token ids to the chained hashes of KV blocks, as Baton's own index names them.

A block's hash covers all tokens up to its end: `h[i] = xxh3_64(tokens of block i as little-endian uint32, h[i-1])`,
where the second is the seed. The first one's seed names what else decides whether KV can be shared: model, block size,
LoRA adapter, cache salt.
An engine's own hashes are opaque to us; they are translated through the tokens in its events. 64 bits without a key are
enough because a hash only steers where a request goes, never which KV is used.
"""

from array import array
from struct import iter_unpack

from xxhash import xxh3_64_intdigest

HASH_BYTES = 8


def seed(model: str, block_size: int, lora: str = "", salt: str = "", extra: str = "") -> int:
    """The seed of a chain; `extra` is whatever else an engine mixed into its own hash (media)."""
    return xxh3_64_intdigest("\0".join((model, str(block_size), lora, salt, extra)).encode())


def chain(ids: bytes | bytearray | memoryview, block_size: int, seed: int) -> bytes:
    """Hashes of the full blocks of a prompt, packed, 8 bytes each in native order.

    `ids` are token ids as little-endian uint32; a rest that fills no block has no hash. 0.1 µs a block.
    """
    size = 4 * block_size
    full = len(ids) - len(ids) % size
    digest = xxh3_64_intdigest
    return array("Q", [seed := digest(block, seed) for (block,) in iter_unpack(f"{size}s", ids[:full])]).tobytes()
