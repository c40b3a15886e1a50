"""The prefix index in this process: nothing to install, one gateway.

It grows with what engines hold and shrinks with it, up to a bound; guesses and sessions have bounds of their own.
A full index refuses blocks that nobody holds yet, and what hangs from them: it then knows less, never anything wrong.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from gateway.index.contract import Change, Holder, InFlight, Lost, Match, Stored, UnknownParent
from gateway.index.guesses import Guesses
from gateway.index.inspect import Run, Stats, name
from gateway.index.runs import Node, shared

SESSIONS = 100_000
"""Sessions that are remembered; the oldest make way."""

LIMIT_BLOCKS = 8_000_000
"""Different blocks, about 130 bytes each."""

_STEP = 200
"""Nodes that are looked through before others have their turn."""

_DEAD = 64
"""Forgotten holders after which the index is swept at once: each one makes every mask a bit longer."""


class MemoryIndex:
    """Run nodes in Python; `width` is the blocks of a node, `limit_blocks` bounds all of them together."""

    def __init__(
        self, width: int = 32, clock: Callable[[], float] = time.monotonic, limit_blocks: int = LIMIT_BLOCKS
    ) -> None:
        self.refused = 0
        """Blocks that were not stored because the index was full."""
        self._width = width
        self._limit = limit_blocks
        self._clock = clock
        self._nodes: dict[bytes, Node] = {}
        """Every block's hash -> the node that it is in."""
        self._holders: dict[int, Holder] = {}
        """Slot (bit number) -> who it stands for."""
        self._writers: dict[int, MemoryWriter] = {}
        self._live = 0
        self._dead: set[int] = set()
        self._expected = Guesses(clock)
        self._learned = Guesses(clock)
        self._sessions: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    async def match(self, hashes: bytes, session: bytes = b"") -> Match:
        bound, ends = self._sessions.get(session, ("", 0.0))
        return Match(
            held=self._depths(hashes),
            expected=self._expected.get(hashes),
            learned=self._learned.get(hashes),
            session=bound if ends > self._clock() else "",
        )

    def _depths(self, hashes: bytes) -> dict[Holder, int]:
        nodes = self._nodes
        blocks = len(hashes) // 8
        found: dict[Holder, int] = {}
        active = self._live
        at = 0
        while at < blocks and active:
            start = 8 * at
            node = nodes.get(hashes[start : start + 8])
            if node is None:
                break
            run, masks = node.run, node.masks
            same = len(masks)
            if hashes[start : start + len(run)] != run:  # most nodes agree with a prompt to their end
                same = shared(run, 0, hashes, at, min(same, blocks - at))
                if not same:
                    break  # two blocks with one hash: somebody made them so
            common = node.known
            if common is None:
                common = node.common()
            if active & ~common:
                for k in range(same):
                    held = active & masks[k]
                    if held != active:
                        self._note(found, active & ~held, at + k)
                        active = held
                        if not active:
                            break
            at += same
        self._note(found, active, at)
        return found

    def _note(self, found: dict[Holder, int], slots: int, depth: int) -> None:
        """These holders have so many leading blocks."""
        if not depth:
            return
        while slots:
            bit = slots & -slots
            found[self._holders[bit.bit_length() - 1]] = depth
            slots ^= bit

    async def open(self, holder: Holder) -> "MemoryWriter":
        if len(self._dead) >= _DEAD:
            await self.sweep()
        await self.forget(holder)
        slot = next(slot for slot in range(len(self._holders) + len(self._dead) + 1) if self._free(slot))
        self._holders[slot] = holder
        self._live |= 1 << slot
        writer = self._writers[slot] = MemoryWriter(self, holder, slot)
        return writer

    def _free(self, slot: int) -> bool:
        return slot not in self._holders and slot not in self._dead

    async def forget(self, holder: Holder) -> None:
        for slot in [slot for slot, other in self._holders.items() if other == holder]:
            del self._holders[slot]
            self._writers.pop(slot).closed = True
            self._live &= ~(1 << slot)
            self._dead.add(slot)

    def expect(self, hashes: bytes, engines: Sequence[str], ttl_s: float) -> None:
        self._expected.put(hashes, engines, ttl_s)

    def learn(self, hashes: bytes, engines: Sequence[str], ttl_s: float) -> None:
        self._learned.put(hashes, engines, ttl_s)

    def bind(self, hashes: bytes, session: bytes, engine: str, ttl_s: float) -> None:
        self._sessions[session] = (engine, self._clock() + ttl_s)
        self._sessions.move_to_end(session)
        if len(self._sessions) > SESSIONS:
            self._sessions.popitem(last=False)

    def know(self, names: Sequence[str]) -> None:
        """There are no others."""

    def publish(self, loads: Callable[[], Mapping[str, InFlight]]) -> None:
        """Nobody else is here to know."""

    def beat(self) -> None:
        """The same."""

    def store(self, bit: int, parent: bytes | None, hashes: bytes) -> int:
        """A holder has these blocks; returns how many of them there was no room for. Raises `UnknownParent`."""
        at, blocks = 0, len(hashes) // 8
        node: Node | None = None
        if parent is not None:
            node = self._nodes.get(parent)
            place = node.place(parent) if node is not None else 0
            if node is None or not node.masks[place] & bit:
                raise UnknownParent
            after = len(node.masks) - place - 1
            if after:
                at = self._cover(node, place + 1, bit, hashes, 0, min(after, blocks))
                if at < after:
                    node = None  # branches off in the middle
        while at < blocks:
            if node is not None and len(node.masks) < self._width:
                fresh = self._fresh(hashes, at, min(self._width - len(node.masks), blocks - at, self._room))
                if fresh:
                    self._enter(node, hashes[8 * at : 8 * (at + fresh)])
                    node.append(hashes[8 * at : 8 * (at + fresh)], bit)
                    at += fresh
                    continue
            node = self._nodes.get(hashes[8 * at : 8 * at + 8])
            if node is None:
                fresh = self._fresh(hashes, at, min(self._width, blocks - at, self._room))
                if not fresh:
                    return blocks - at
                node = Node(hashes[8 * at : 8 * (at + fresh)], [bit] * fresh)
                self._enter(node, node.run)
                at += fresh
            else:
                same = self._cover(node, 0, bit, hashes, at, min(len(node.masks), blocks - at))
                at += same
                if not same:
                    return 0  # two blocks with one hash: somebody made them so
                if same < len(node.masks):
                    node = None
        return 0

    @property
    def _room(self) -> int:
        return max(0, self._limit - len(self._nodes))

    def _cover(self, node: Node, place: int, bit: int, hashes: bytes, at: int, limit: int) -> int:
        """Give the holder the blocks of a node that agree with `hashes`; returns how many do."""
        same = shared(node.run, place, hashes, at, limit)
        if same:
            node.add(place, same, bit)
        return same

    def _fresh(self, hashes: bytes, at: int, limit: int) -> int:
        """How many of the next blocks are in no node."""
        nodes = self._nodes
        for count in range(limit):
            if hashes[8 * (at + count) : 8 * (at + count) + 8] in nodes:
                return count
        return limit

    def _enter(self, node: Node, hashes: bytes) -> None:
        for k in range(0, len(hashes), 8):
            self._nodes[hashes[k : k + 8]] = node

    def remove(self, bit: int, hashes: bytes) -> None:
        """A holder no longer has these blocks."""
        touched = []
        for k in range(0, len(hashes), 8):
            key = hashes[k : k + 8]
            node = self._nodes.get(key)
            if node is not None:
                node.drop(node.place(key), bit)
                touched.append(node)
        for node in touched:
            self._trim(node)

    def _trim(self, node: Node) -> None:
        gone = node.cut()
        for k in range(0, len(gone), 8):
            self._nodes.pop(gone[k : k + 8], None)  # a run may name one block twice, if somebody made it so

    async def sweep(self) -> int:
        gone = set(self._dead)
        dead = sum(1 << slot for slot in gone)
        if not dead:
            return 0
        cut = 0
        async for node in self._runs():
            held = sum((mask & dead).bit_count() for mask in node.masks)
            if held:
                cut += held
                node.keep(~dead)
                self._trim(node)
        self._dead -= gone
        return cut

    async def _runs(self) -> AsyncIterator[Node]:
        """Every node once, in small steps: others use the index meanwhile."""
        looked = 0
        for key in list(self._nodes):
            node = self._nodes.get(key)
            if node is not None and node.run.startswith(key):
                yield node
                looked += 1
                if looked % _STEP == 0:
                    await asyncio.sleep(0)

    async def stats(self) -> Stats:
        """How large the index is."""
        who, live = dict(self._holders), self._live  # as it is now; the walk takes a while
        count = dict.fromkeys(who, 0)
        nodes = blocks = 0
        async for node in self._runs():
            nodes += 1
            for mask in node.masks:
                held = mask & live
                blocks += bool(held)
                while held:
                    bit = held & -held
                    count[bit.bit_length() - 1] += 1
                    held ^= bit
        holders = {name(*who[slot]): held for slot, held in count.items()}
        return Stats(nodes, blocks, sum(count.values()), holders)

    async def runs(self) -> list[Run]:
        """Every node, the heaviest first."""
        found = []
        async for node in self._runs():
            held = {name(*who): sum(m >> slot & 1 for m in node.masks) for slot, who in self._holders.items()}
            found.append(Run(node.run[:8].hex(), len(node.masks), {who: n for who, n in held.items() if n}))
        return sorted(found, key=lambda run: -run.weight)

    async def close(self) -> None:
        """Nothing to give back."""


class MemoryWriter:
    """The blocks of one holder; one bit of every mask."""

    def __init__(self, index: MemoryIndex, holder: Holder, slot: int) -> None:
        self.holder = holder
        self._index = index
        self._slot = slot
        self._partial = False
        """Something was refused: a parent that is unknown from then on may be one that we refused."""
        self.closed = False

    async def apply(self, changes: Sequence[Change]) -> None:
        if self.closed:
            raise Lost
        bit = 1 << self._slot
        for change in changes:
            if isinstance(change, Stored):
                self._store(bit, change)
            else:
                self._index.remove(bit, change.hashes)

    def _store(self, bit: int, change: Stored) -> None:
        try:
            refused = self._index.store(bit, change.parent, change.hashes)
        except UnknownParent:
            if not self._partial:
                raise
            refused = len(change.hashes) // 8
        if refused:
            self._partial = True
            self._index.refused += refused

    async def close(self) -> None:
        if not self.closed:
            await self._index.forget(self.holder)
