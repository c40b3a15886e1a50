"""What caches could have hit at best, whoever places the requests: bounds beside which hit rates are read.

Requests are taken in the order of the trace, one after another; each finds its leading blocks, and leaves those of its
prompt and its answer.
"""

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush

import msgspec

from load.replay.trace import Ask


class Ideal(msgspec.Struct, frozen=True):
    """Shares of prompt tokens that one cache, shared by all engines, would have had."""

    infinite: float
    oracle: float
    """As large as all engines together, and it knows the future: what is needed last goes first (Belady)."""
    lru: float
    """As large, and what was used last goes last."""


def ideal(asks: Sequence[Ask], block_tokens: int, blocks: int) -> Ideal:
    """`blocks` is the capacity of the whole fleet."""
    tokens = sum(ask.prompt for ask in asks) or 1
    share = block_tokens / tokens
    return Ideal(
        share * infinite(asks, block_tokens),
        share * oracle(asks, block_tokens, blocks),
        share * lru(asks, block_tokens, blocks),
    )


def _looked_up(ask: Ask, block_tokens: int) -> Sequence[int]:
    """The last token of a prompt is always computed."""
    return ask.names[: (ask.prompt - 1) // block_tokens]


def infinite(asks: Sequence[Ask], block_tokens: int) -> int:
    """Blocks hit by a cache that forgets nothing."""
    held: set[int] = set()
    hits = 0
    for ask in asks:
        for name in _looked_up(ask, block_tokens):
            if name not in held:
                break
            hits += 1
        held.update(ask.names)
    return hits


def lru(asks: Sequence[Ask], block_tokens: int, capacity: int) -> int:
    """Blocks hit if the least recently used go first, and of one request its last before its first."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for ask in asks:
        for name in _looked_up(ask, block_tokens):
            if name not in held:
                break
            hits += 1
        for name in reversed(ask.names):
            held[name] = None
            held.move_to_end(name)
        while len(held) > capacity:
            held.popitem(last=False)
    return hits


def oracle(asks: Sequence[Ask], block_tokens: int, capacity: int) -> int:
    """Blocks hit if those go first whose next use is farthest away; no cache of that size hits more.

    A block is used whenever its beginning is, so no later block of a prefix outlives an earlier one.
    """
    uses: dict[int, list[int]] = {}
    for at, ask in enumerate(asks):
        for name in set(_looked_up(ask, block_tokens)):
            uses.setdefault(name, []).append(at)
    for row in uses.values():
        row.reverse()
    held: dict[int, int] = {}
    """Of each block, when it is used next."""
    far: list[tuple[int, int, int]] = []
    """Farthest first, of equals the deepest; entries that are out of date are passed over."""
    hits = 0
    for at, ask in enumerate(asks):
        for name in _looked_up(ask, block_tokens):
            if name not in held:
                break
            hits += 1
        for depth, name in enumerate(ask.names):
            row = uses.get(name, [])
            while row and row[-1] <= at:
                row.pop()
            if row:
                held[name] = row[-1]
                heappush(far, (-row[-1], -depth, name))
            else:
                held.pop(name, None)  # nobody asks for it again
        while len(held) > capacity:
            when, _, name = heappop(far)
            if held.get(name) == -when:
                del held[name]
    return hits
