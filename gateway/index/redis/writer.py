"""One holder's blocks in one shard: turns changes into calls of the library, one in flight at a time.

Redis finds a block by the head of its node and its offset there, and both stay as they are while the holder has the
block; so the writer remembers them, 9 bytes a block, and Redis needs no directory.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from struct import pack

from gateway.index.contract import Change, Holder, Lost, Removed, Stored, UnknownParent

EVENTS = 8
BLOCKS = 256
"""What one call carries at most: everybody else waits while the server is at it."""

_OFFSETS = [bytes([at]) for at in range(32)]
_ROOT = b"\0" * 8 + b"\xff"

Send = Callable[[bytes, int, int, list[bytes]], Awaitable[bytes]]
"""(slot, epoch, call number, events) -> places of what was stored."""


@dataclass(slots=True)
class _Call:
    number: int
    events: list[bytes] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)
    """Packed hashes of each store."""
    fresh: set[bytes] = field(default_factory=set)
    ends: set[bytes] = field(default_factory=set)
    """Last hash of each store."""
    blocks: int = 0

    @property
    def full(self) -> bool:
        return len(self.events) >= EVENTS or self.blocks >= BLOCKS


class ShardWriter:
    """Blocks of one incarnation of a holder in one shard."""

    def __init__(self, holder: Holder, slot: bytes, epoch: int, send: Send) -> None:
        self.holder = holder
        self._slot = slot
        self._epoch = epoch
        self._send = send
        self._places: dict[bytes, bytes] = {}
        self._calls = 0
        self._left: deque[Change] | None = None
        self._pending: _Call | None = None

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    async def apply(self, changes: Sequence[Change]) -> None:
        """See `Writer.apply`. After `Unavailable` it goes on where it was, whatever is given again."""
        if not changes and self._left is None:
            await self._send(self._slot, self._epoch, self._calls, [])
            return
        if self._left is None:
            self._left = deque(changes)
        try:
            while self._left or self._pending:
                call = self._pending = self._pending or self._next(self._left)
                if call.events:
                    self._learn(call, await self._send(self._slot, self._epoch, call.number, call.events))
                    self._calls = call.number
                self._pending = None
        except (UnknownParent, Lost):
            self._left = self._pending = None
            raise
        self._left = None

    def _next(self, left: deque[Change]) -> _Call:
        """As many changes as go into one call. Raises `UnknownParent` if the first one cannot be placed."""
        call = _Call(self._calls + 1)
        while left and not call.full:
            change = left[0]
            if isinstance(change, Stored):
                place = self._parent(change.parent, call)
                if place is None:
                    if call.events:
                        break  # its parent is known after this call, or never
                    raise UnknownParent
                left.popleft()
                self._store(call, place, change, left)
            elif self._remove(call, change):
                left.popleft()
            else:
                break
        return call

    def _parent(self, parent: bytes | None, call: _Call) -> bytes | None:
        if parent is None:
            return _ROOT
        if (place := self._places.get(parent)) is not None:
            return place
        return parent + b"\xfe" if parent in call.ends else None

    def _store(self, call: _Call, place: bytes, change: Stored, left: deque[Change]) -> None:
        room = 8 * (BLOCKS - call.blocks)
        hashes = change.hashes
        if len(hashes) > room:
            hashes, rest = hashes[:room], hashes[room:]
            left.appendleft(Stored(hashes[-8:], rest))
        call.events.append(b"S" + place + hashes)
        call.stored.append(hashes)
        call.fresh.update(hashes[at : at + 8] for at in range(0, len(hashes), 8))
        call.ends.add(hashes[-8:])
        call.blocks += len(hashes) // 8

    def _remove(self, call: _Call, change: Removed) -> bool:
        """False if something of it is stored by this very call, whose places are not known yet."""
        keys = [change.hashes[at : at + 8] for at in range(0, len(change.hashes), 8)]
        if not call.fresh.isdisjoint(keys):
            return False
        masks: dict[bytes, int] = {}
        for key in keys:
            place = self._places.pop(key, None)
            if place is not None:
                head = place[:8]
                masks[head] = masks.get(head, 0) | 1 << place[8]
        if masks:
            call.events.append(b"R" + b"".join(head + pack("<I", mask) for head, mask in masks.items()))
            call.blocks += len(masks)
        return True

    def _learn(self, call: _Call, places: bytes) -> None:
        found: list[bytes] = []
        for at in range(0, len(places), 10):
            head, first, count = places[at : at + 8], places[at + 8], places[at + 9]
            found += [head + offset for offset in _OFFSETS[first : first + count]]
        keys = [run[at : at + 8] for run in call.stored for at in range(0, len(run), 8)]
        self._places.update(zip(keys, found, strict=True))
