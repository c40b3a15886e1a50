"""From token ids to the chained hashes of KV blocks, as Baton's own index names them.

A block's hash covers all tokens up to its end: `h[i] = xxh3_64(tokens of block i as little-endian uint32, h[i-1])`,
where the second is the seed. The first one's seed names what else decides whether KV can be shared: model, block size,
LoRA adapter, cache salt.
An engine's own hashes are opaque to us; they are translated through the tokens in its events. 64 bits without a key are
enough because a hash only steers where a request goes, never which KV is used.
"""

from array import array
from functools import lru_cache
from struct import iter_unpack

from xxhash import xxh3_64_intdigest

HASH_BYTES = 8

STRETCH = 64
"""Blocks that are remembered together: prompts of one conversation begin alike, and one hash finds 64 then."""

STRETCHES = 4096
"""So many are remembered at least, twice as many at most; 600 bytes each."""


@lru_cache(4096)
def seed(model: str, block_size: int, lora: str = "", salt: str = "", extra: str = "") -> int:
    """The seed of a chain; `extra` is whatever else an engine mixed into its own hash (media)."""
    return xxh3_64_intdigest("\0".join((model, str(block_size), lora, salt, extra)).encode())


def _hashes(ids: bytes | bytearray | memoryview, size: int, seed: int) -> bytes:
    digest = xxh3_64_intdigest
    return array("Q", [seed := digest(block, seed) for (block,) in iter_unpack(f"{size}s", ids)]).tobytes()


class _Memory:
    """Stretches hashed lately: tokens and what came before them -> their hashes."""

    def __init__(self) -> None:
        self._young: dict[tuple[int, int], bytes] = {}
        self._old: dict[tuple[int, int], bytes] = {}

    def hashes(self, stretch: bytes | bytearray | memoryview, size: int, seed: int) -> bytes:
        key = (xxh3_64_intdigest(stretch, seed), size)
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None) or _hashes(stretch, size, seed)
            if len(self._young) >= STRETCHES:
                self._young, self._old = {}, self._young
            self._young[key] = found
        return found


_memory = _Memory()


def chain(ids: bytes | bytearray | memoryview, block_size: int, seed: int) -> bytes:
    """Hashes of the full blocks of a prompt, packed, 8 bytes each in native order.

    `ids` are token ids as little-endian uint32; a rest that fills no block has no hash. 0.15 µs a block, a tenth of
    that for what was hashed before. Threads may call it at once.
    """
    size = 4 * block_size
    full = len(ids) - len(ids) % size
    if full < STRETCH * size:
        return _hashes(ids[:full], size, seed)
    parts = []
    at = 0
    while at + STRETCH * size <= full:
        part = _memory.hashes(ids[at : at + STRETCH * size], size, seed)
        parts.append(part)
        seed = int.from_bytes(part[-HASH_BYTES:], "little")
        at += STRETCH * size
    parts.append(_hashes(ids[at:full], size, seed))
    return b"".join(parts)
