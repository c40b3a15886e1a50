"""What a fleet's caches hold, generated: conversations that grow and branch, and long documents.

Conversations start from shared roots (system prompts, few-shot examples), grow turn by turn, sometimes branch off an
earlier turn and sometimes move to another engine. Each engine keeps the most recently used blocks, and drops leaves
before their parents and tails first, as vLLM does. So the generator always knows exactly who holds what.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import NamedTuple

from gateway.index.contract import Change, Holder, Removed, Stored

ROOTS = 200
ROOT_BLOCKS = (50, 400)
TURN_BLOCKS = (8, 64)
ZIPF = 0.8
"""Root k is chosen with weight k**-ZIPF."""

BRANCH, MOVE, END = 0.10, 0.15, 0.05
"""Of all turns: from an earlier turn, on another engine, the last one of a conversation."""

OPEN = 8
"""Conversations that go on at a time, for each engine."""

DOCUMENTS, DOCUMENT_BLOCKS = 6, 6250
SHARES = (0.25, 0.5, 0.75, 1.0)
"""How much of a document each of its engines holds, for good."""

DOCUMENT_PAIRS = DOCUMENTS * sum(int(share * DOCUMENT_BLOCKS) for share in SHARES)


class Segment:
    """Blocks that came together, in one turn: packed hashes."""

    __slots__ = ("blocks", "hashes")

    def __init__(self, pick: Random, blocks: int) -> None:
        self.blocks = blocks
        self.hashes = pick.randbytes(8 * blocks)


Prompt = list[Segment]
"""From the root on."""


class Query(NamedTuple):
    """A prompt, and the right answer to it at the time it was made."""

    hashes: bytes
    held: dict[Holder, int]


class Turn(NamedTuple):
    """What one turn changes at one engine."""

    holder: Holder
    changes: list[Change]
    blocks: int
    """Stored and removed."""


class Cache:
    """One engine's blocks, the least recently used first; a parent is always younger than its children."""

    def __init__(self, blocks: int) -> None:
        self.free = blocks
        self.held: OrderedDict[Segment, int] = OrderedDict()
        """Leading blocks held of each segment."""

    def use(self, prompt: Prompt) -> list[Change]:
        """Hold all of a prompt; it must not be longer than the cache."""
        missing: list[bytes] = []
        parent: bytes | None = None
        for segment in prompt:
            have = self.held.get(segment, 0)
            missing.append(segment.hashes[8 * have :])
            if have:
                parent = segment.hashes[8 * have - 8 : 8 * have]
        self._touch(prompt)
        fresh = b"".join(missing)
        if not fresh:
            return []
        gone = self._evict(len(fresh) // 8 - self.free)
        for segment in prompt:
            self.held[segment] = segment.blocks
        self._touch(prompt)
        self.free += len(gone) // 8 - len(fresh) // 8
        stored = Stored(parent, fresh)
        return [Removed(gone), stored] if gone else [stored]

    def _touch(self, prompt: Prompt) -> None:
        for segment in reversed(prompt):
            if segment in self.held:
                self.held.move_to_end(segment)

    def _evict(self, blocks: int) -> bytes:
        gone: list[bytes] = []
        while blocks > 0:
            segment, have = next(iter(self.held.items()))
            keep = max(0, have - blocks)
            gone.append(segment.hashes[8 * keep : 8 * have])
            blocks -= have - keep
            if keep:
                self.held[segment] = keep
            else:
                del self.held[segment]
        return b"".join(gone)

    def depth(self, prompt: Prompt) -> int:
        """Leading blocks of a prompt that are held."""
        depth = 0
        for segment in prompt:
            have = self.held.get(segment, 0)
            depth += have
            if have < segment.blocks:
                break
        return depth


class Workload:
    """A fleet of `holders` engines with room for `pairs` resident (block, engine) pairs in all.

    Raises ValueError if that is too little for each engine.
    """

    def __init__(self, pairs: int, holders: int, seed: int = 1) -> None:
        room = (pairs - DOCUMENT_PAIRS) // holders
        if holders < len(SHARES) or room < 4 * ROOT_BLOCKS[1]:
            least = DOCUMENT_PAIRS + 4 * ROOT_BLOCKS[1] * holders
            raise ValueError(f"{holders} engines need {least} pairs or more, and {len(SHARES)} engines are the fewest")
        self._pick = Random(seed)
        self._longest = room // 2
        self.holders = [Holder(f"http://engine-{number}:8000") for number in range(holders)]
        self._caches = {holder: Cache(room) for holder in self.holders}
        self._roots = [Segment(self._pick, self._pick.randint(*ROOT_BLOCKS)) for _ in range(ROOTS)]
        self._weights = list(accumulate((k + 1) ** -ZIPF for k in range(ROOTS)))
        self._open = [self._begin() for _ in range(OPEN * holders)]
        self._documents = [Segment(self._pick, DOCUMENT_BLOCKS) for _ in range(DOCUMENTS)]
        self._readers = [
            {self.holders[(4 * number + k) % holders]: int(share * DOCUMENT_BLOCKS) for k, share in enumerate(SHARES)}
            for number in range(DOCUMENTS)
        ]

    def _begin(self) -> tuple[Prompt, Holder]:
        return self._pick.choices(self._roots, cum_weights=self._weights), self._pick.choice(self.holders)

    def documents(self) -> Iterator[Turn]:
        """The first turns of all: documents stay where they are."""
        for document, readers in zip(self._documents, self._readers, strict=True):
            for holder, blocks in readers.items():
                yield Turn(holder, [Stored(None, document.hashes[: 8 * blocks])], blocks)

    def turns(self, blocks: int) -> Iterator[Turn]:
        """Go on, until about so many blocks are stored and removed."""
        while blocks > 0:
            turn = self._turn()
            blocks -= turn.blocks
            yield turn

    def _turn(self) -> Turn:
        pick = self._pick
        number = pick.randrange(len(self._open))
        prompt, holder = self._open[number]
        if pick.random() < BRANCH:
            prompt = prompt[: pick.randint(1, len(prompt))]
        if pick.random() < MOVE:
            holder = pick.choice(self.holders)
        prompt = [*prompt, Segment(pick, pick.randint(*TURN_BLOCKS))]
        changes = self._caches[holder].use(prompt)
        ended = pick.random() < END or sum(segment.blocks for segment in prompt) > self._longest - TURN_BLOCKS[1]
        self._open[number] = self._begin() if ended else (prompt, holder)
        return Turn(holder, changes, sum(len(change.hashes) for change in changes) // 8)

    @property
    def full(self) -> bool:
        """Every engine drops something for whatever it stores."""
        return all(cache.free < ROOT_BLOCKS[1] for cache in self._caches.values())

    def resident(self) -> tuple[int, int]:
        """Blocks that are held: all different ones, and counted once for each engine."""
        longest: dict[Segment, int] = {}
        pairs = DOCUMENT_PAIRS
        for cache in self._caches.values():
            for segment, have in cache.held.items():
                longest[segment] = max(have, longest.get(segment, 0))
                pairs += have
        return sum(longest.values()) + DOCUMENTS * DOCUMENT_BLOCKS, pairs

    def queries(self, blocks: int, hit: float, count: int) -> list[Query]:
        """Prompts of which some engine holds exactly the first `hit` of all blocks."""
        known = int(blocks * hit)
        found: list[Query] = []
        candidates = [prompt for prompt, _ in self._open if sum(segment.blocks for segment in prompt) >= known]
        self._pick.shuffle(candidates)
        for prompt in candidates if known else ():
            depths = {holder: min(cache.depth(prompt), known) for holder, cache in self._caches.items()}
            if max(depths.values()) == known:
                hashes = b"".join(segment.hashes for segment in prompt)
                found.append(self._query(hashes, known, blocks, depths))
            if len(found) == count:
                break
        while len(found) < count:
            number = len(found) % DOCUMENTS
            depths = {holder: min(held, known) for holder, held in self._readers[number].items()}
            found.append(self._query(self._documents[number].hashes, known, blocks, depths))
        return found

    def _query(self, hashes: bytes, known: int, blocks: int, depths: dict[Holder, int]) -> Query:
        rest = self._pick.randbytes(8 * (blocks - known))
        return Query(hashes[: 8 * known] + rest, {holder: depth for holder, depth in depths.items() if depth})
