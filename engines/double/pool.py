"""The KV block pool: reference counts, an LRU free list, the prefix cache, and what the blocks really hold.

Modelled on vLLM's `v1/core/block_pool.py`: a block's *name* is the chained hash of the tokens that the engine believes
it holds; its *content* is what was really written or copied into it. On a healthy engine the two agree. After a late
read from a prefill engine they do not, and the prefix cache then serves the wrong content under the right name.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

NULL_BLOCK = 0
"""Block 0 is never handed out, as in vLLM."""

_MASK = (1 << 64) - 1


def root(salt: str | None = None, lora: str | None = None) -> int:
    """The name before the first block; a cache salt and a LoRA adapter give namespaces of their own."""
    start = 0 if not salt else hash(tuple(salt.encode()))
    return hash((start, *lora.encode())) if lora else start


def chain(parent: int, tokens: Sequence[int]) -> int:
    """The name of a full block after `parent`: an unsigned 64-bit hash that is the same in every process."""
    return hash((parent, tuple(tokens))) & _MASK


class Listener(Protocol):
    """Who is told what the prefix cache holds."""

    def stored(
        self, names: list[int], parent: int | None, tokens: list[int], salt: str | None, lora: str | None
    ) -> None: ...
    def removed(self, name: int) -> None: ...
    def cleared(self) -> None: ...


@dataclass(slots=True)
class Content:
    """What a block holds: the state that its writer had read from the blocks before it, and the tokens written."""

    base: int = 0
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Block:
    id: int
    references: int = 0
    name: int | None = None
    content: Content = field(default_factory=Content)


class Pool:
    """`count` blocks of `size` tokens, block 0 included but never used."""

    def __init__(self, count: int, size: int, listener: Listener | None = None) -> None:
        self.size = size
        self.blocks = [Block(number) for number in range(count)]
        self.listener = listener
        self._free: OrderedDict[int, Block] = OrderedDict((block.id, block) for block in self.blocks[1:])
        self._cached: dict[int, dict[int, Block]] = {}

    def __repr__(self) -> str:
        return f"<Pool {len(self._free)} free of {len(self.blocks) - 1}, {len(self._cached)} cached>"

    @property
    def free(self) -> int:
        """Blocks that could be handed out now, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1 (`vllm:kv_cache_usage_perc`)."""
        usable = len(self.blocks) - 1
        return 1.0 - len(self._free) / usable if usable else 0.0

    def cached(self) -> frozenset[int]:
        """The names that the prefix cache would find now."""
        return frozenset(self._cached)

    def find(self, names: Iterable[int]) -> list[Block]:
        """The longest run of cached blocks from the first name on; take them with `hold`."""
        found: list[Block] = []
        for name in names:
            blocks = self._cached.get(name)
            if not blocks:
                break
            found.append(next(iter(blocks.values())))
        return found

    def hold(self, blocks: Iterable[Block]) -> None:
        """One more reference to each block."""
        for block in blocks:
            if not block.references:
                self._free.pop(block.id, None)
            block.references += 1

    def take(self, count: int) -> list[Block] | None:
        """`count` empty blocks with one reference each, oldest first; None (and no change) if there are too few."""
        if count > len(self._free):
            return None
        taken: list[Block] = []
        for _ in range(count):
            _, block = self._free.popitem(last=False)
            self._forget(block)
            block.references = 1
            block.content = Content()
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[Block]) -> None:
        """One reference less to each block of a request; its last blocks are reused before its first ones."""
        for block in reversed(blocks):
            block.references -= 1
            if block.references:
                continue
            self._free[block.id] = block
            if block.name is None:
                self._free.move_to_end(block.id, last=False)

    def cache(
        self,
        blocks: Sequence[Block],
        names: Sequence[int],
        start: int,
        tokens: list[int],
        salt: str | None = None,
        lora: str | None = None,
    ) -> None:
        """Enter the full blocks `blocks[start:len(names)]`, which hold `tokens`, into the prefix cache.

        A block that came from another engine is in it already: its last token is computed again, and nothing is told.
        """
        while start < len(names) and blocks[start].name == names[start]:
            start += 1
            tokens = tokens[self.size :]
        for block, name in zip(blocks[start : len(names)], names[start:], strict=True):
            if block.name is None:
                block.name = name
                self._cached.setdefault(name, {})[block.id] = block
        if self.listener and start < len(names):
            self.listener.stored(list(names[start:]), names[start - 1] if start else None, tokens, salt, lora)

    def reset(self) -> bool:
        """Forget the prefix cache. False, and nothing done, while any block is in use (as `/reset_prefix_cache`)."""
        if len(self._free) != len(self.blocks) - 1:
            return False
        self._cached.clear()
        for block in self.blocks:
            block.name = None
        if self.listener:
            self.listener.cleared()
        return True

    def _forget(self, block: Block) -> None:
        if block.name is None:
            return
        blocks = self._cached[block.name]
        del blocks[block.id]
        if not blocks:
            del self._cached[block.name]
        if self.listener:
            self.listener.removed(block.name)
        block.name = None

    def check(self) -> None:
        """Raise AssertionError if the pool contradicts itself."""
        for block in self.blocks[1:]:
            assert (block.references == 0) == (block.id in self._free), block
            assert block.references >= 0, block
            if block.name is not None:
                assert self._cached[block.name][block.id] is block, block
        assert sum(map(len, self._cached.values())) == sum(b.name is not None for b in self.blocks)
