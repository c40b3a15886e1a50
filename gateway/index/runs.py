"""Run nodes: a path-compressed radix tree without pointers.

A node is a run of up to `width` blocks, each the parent of the next, with a bitmask of holders for every block. A block
is in one node at one place for as long as anybody holds it: nodes never split or move, a branch out of the middle of
one starts a node of its own. A child's hash covers its parent's, so the node that continues a prompt is found by hash
alone, and two runs that agree at a block agree everywhere before it.
"""

from functools import reduce
from operator import and_


class Node:
    """One run. `run` is its packed hashes; bit `s` of `masks[k]` says that holder `s` has block `k`."""

    __slots__ = ("known", "masks", "run")

    def __init__(self, run: bytes, masks: list[int]) -> None:
        self.run = run
        self.masks = masks
        self.known: int | None = None
        """What `common` found, until something changes."""

    def common(self) -> int:
        """Holders of every block of the run."""
        self.known = reduce(and_, self.masks)
        return self.known

    def place(self, key: bytes) -> int:
        """Which block of the run has this hash. It must be one of them."""
        at = self.run.find(key)
        while at % 8:
            at = self.run.find(key, at + 1)
        return at // 8

    def add(self, first: int, count: int, bit: int) -> None:
        """A holder has these blocks."""
        part = self.masks[first : first + count]
        value = part[0]
        if part.count(value) == count:
            self.masks[first : first + count] = [value | bit] * count
        else:
            self.masks[first : first + count] = [mask | bit for mask in part]
        self.known = None

    def append(self, hashes: bytes, bit: int) -> None:
        """A holder has further blocks."""
        self.run += hashes
        self.masks += [bit] * (len(hashes) // 8)
        self.known = None

    def keep(self, live: int) -> None:
        """Forget all holders but these."""
        self.masks = [mask & live for mask in self.masks]
        self.known = None

    def drop(self, at: int, bit: int) -> None:
        """A holder no longer has this block."""
        self.masks[at] &= ~bit
        self.known = None

    def cut(self) -> bytes:
        """Take away the end that nobody holds; returns its hashes. Nothing may be left."""
        masks = self.masks
        kept = len(masks)
        while kept and not masks[kept - 1]:
            kept -= 1
        if kept == len(masks):
            return b""
        gone = self.run[8 * kept :]
        self.run = self.run[: 8 * kept]
        del masks[kept:]
        self.known = None
        return gone


def shared(a: bytes, a_at: int, b: bytes, b_at: int, limit: int) -> int:
    """How many blocks two packed runs share, from block `a_at` of the one and `b_at` of the other on; at most `limit`.

    Chained hashes: equal at a block means equal before it, so this is a bisection.
    """
    x, y = 8 * a_at, 8 * b_at
    if limit <= 0 or a[x + 8 * limit - 8 : x + 8 * limit] == b[y + 8 * limit - 8 : y + 8 * limit]:
        return max(limit, 0)
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if a[x + 8 * middle - 8 : x + 8 * middle] == b[y + 8 * middle - 8 : y + 8 * middle]:
            low = middle
        else:
            high = middle
    return low
