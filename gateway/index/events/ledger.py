"""What one KV cache holds, as its events tell: the engine's name of each block, our hash of it, our hash of its parent.

An engine's names are opaque, so each block is hashed again from the tokens in its event, behind the hash of its parent.
vLLM tells of every copy of a block, when it is made and when it goes: a prompt that is cached to its end has its last
block computed once more. So copies are counted, and a block is gone with the last of them.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from gateway.index.contract import Change, Removed, Stored
from gateway.index.events.batch import BlockRemoved, BlockStored, Key
from gateway.prompt.hashes import chain, seed

NO_PARENT = b"\0" * 8
BLOCKS = 4_000_000
"""Blocks that one ledger holds at most; what comes above is not indexed, and counted."""


class Ledger:
    """The blocks of one cache (one tier of one rank of one engine)."""

    def __init__(self, model: str, block_size: int) -> None:
        self._model = model
        self._size = block_size
        self._blocks: dict[Key, bytes] = {}
        """Engine's name -> our hash, and that of the parent: 16 bytes."""
        self._copies: dict[Key, int] = {}
        """Blocks of which there is more than one copy -> how many more."""
        self._roots: dict[tuple[str, str], bytes] = {}
        self._waiting: dict[bytes, list[Key]] = {}
        """Hash of a block that is not in the index -> blocks that cannot be there without it."""
        self._behind: set[bytes] = set()
        """Our hashes of the blocks that wait."""
        self.orphans = 0
        """Blocks whose parent was never told: their events were lost, or came before we listened."""
        self.refused = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def names(self) -> Iterator[Key]:
        """The engine's names of all blocks."""
        return iter(self._blocks)

    def hashes(self) -> Iterator[bytes]:
        """Our hashes of all blocks."""
        return (block[:8] for block in self._blocks.values())

    def clear(self) -> None:
        """Nothing is held any more."""
        self._blocks.clear()
        self._copies.clear()
        self._waiting.clear()
        self._behind.clear()

    def stored(self, event: BlockStored) -> list[Change]:
        """The changes that follow from a store; its tokens fill its blocks exactly."""
        keys, blocks = event.block_hashes, self._blocks
        if len(blocks) + len(keys) > BLOCKS:
            self.refused += len(keys)
            return []
        known = [key for key in keys if key in blocks]
        for key in known:
            self._copies[key] = self._copies.get(key, 0) + 1
        if len(known) == len(keys):
            return []
        parent, start = NO_PARENT, b""
        if event.parent_block_hash is None:
            start = self._root(event)
        elif (found := blocks.get(event.parent_block_hash)) is not None:
            parent = start = found[:8]
        else:
            self.orphans += len(keys)
            return []
        hashes = self._hashes(event, start)
        ours = [hashes[at : at + 8] for at in range(0, len(hashes), 8)]
        parents = [parent, *ours[:-1]]
        blocks.update(zip(keys, [own + before for own, before in zip(ours, parents, strict=True)], strict=True))
        if not self._behind:
            return [Stored(parent if parent != NO_PARENT else None, hashes)]
        if parent in self._behind:
            for key, before in zip(keys, parents, strict=True):
                self._waiting.setdefault(before, []).append(key)
            self._behind.update(ours)
            return []
        self._behind.difference_update(ours)  # a block that went while it waited is not behind anything now
        return [Stored(parent if parent != NO_PARENT else None, hashes), *self._released(ours)]

    def _root(self, event: BlockStored) -> bytes:
        """The seed of a prompt's first block, as the bytes of a hash."""
        extra = _extra(event, 0)
        salt = next((part for part in extra if isinstance(part, str)), "")
        named = (event.lora_name or "", salt)
        if (start := self._roots.get(named)) is None:
            start = seed(self._model, self._size, *named).to_bytes(8, "little")
            if len(self._roots) < 10_000:
                self._roots[named] = start
        return start

    def _hashes(self, event: BlockStored, start: bytes) -> bytes:
        """Our hashes of an event's blocks. What else the engine mixed in (media) makes them match no text."""
        ids = array("I", event.token_ids).tobytes()
        before = int.from_bytes(start, "little")
        others = [_others(event, at) for at in range(len(event.block_hashes))] if event.extra_keys else []
        if not any(others):
            return chain(ids, self._size, before)
        found = b""
        width = 4 * self._size
        for at, other in enumerate(others):
            begin = seed("", before, extra=repr(other)) if other else before
            found += chain(ids[at * width : (at + 1) * width], self._size, begin)
            before = int.from_bytes(found[-8:], "little")
        return found

    def removed(self, event: BlockRemoved) -> list[Change]:
        """The changes that follow from a removal."""
        gone = []
        for key in event.block_hashes:
            if copies := self._copies.pop(key, 0):
                if copies > 1:
                    self._copies[key] = copies - 1
            else:
                gone.append(self._blocks.pop(key, b"")[:8])
        hashes = b"".join(gone)
        return [Removed(hashes)] if hashes else []

    def everything(self) -> list[Change]:
        """All that is held, parents before children: for an index that has nothing of it.

        Blocks behind a hole cannot be placed until their parent returns; they are kept, and come with it.
        """
        children: dict[bytes, list[Key]] = {}
        for key, block in self._blocks.items():
            children.setdefault(block[8:], []).append(key)
        self._waiting = children
        self._behind = set(self.hashes())
        return self._released([NO_PARENT])

    def _released(self, parents: Iterable[bytes]) -> list[Change]:
        """Stores of all that waited for these blocks, and for what follows them."""
        changes: list[Change] = []
        open_ends = [parent for parent in parents if parent in self._waiting]
        while open_ends:
            parent = open_ends.pop()
            for key in self._waiting.pop(parent, ()):
                block = self._blocks.get(key)
                if block is None or block[:8] not in self._behind:
                    continue  # it went while it waited; or it came again and is named here twice
                run = [block[:8]]
                while len(following := self._waiting.get(run[-1], [])) == 1 and following[0] in self._blocks:
                    run.append(self._blocks[self._waiting.pop(run[-1])[0]][:8])
                self._behind.difference_update(run)
                if run[-1] in self._waiting:
                    open_ends.append(run[-1])
                changes.append(Stored(parent if parent != NO_PARENT else None, b"".join(run)))
        return changes


def _extra(event: BlockStored, at: int) -> list[Any]:
    """What the engine mixed into the hash of one block, without the adapter's name."""
    keys = event.extra_keys[at] if event.extra_keys and at < len(event.extra_keys) else None
    found = list(keys or ())
    if event.lora_name in found:
        found.remove(event.lora_name)  # once: a salt may be called the same
    return found


def _others(event: BlockStored, at: int) -> list[Any]:
    """The same without the cache salt, which the first block of a prompt carries as a string."""
    first = at == 0 and event.parent_block_hash is None
    return [part for part in _extra(event, at) if not (first and isinstance(part, str))]
