"""KV blocks of one engine: reference counts, an LRU prefix cache, no more than fit.

As vLLM's `v1/core/block_pool.py` seen from outside: a block that nobody uses stays cached until its place is needed,
the least recently used goes first, and of one request its last block before its first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Blocks:
    """`capacity` blocks. A block's name stands for its content and all before it."""

    __slots__ = ("_idle", "_uses", "capacity", "changes", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        """Blocks that requests hold."""
        self._uses: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.changes: list[tuple[int, bool]] | None = None
        """If a list: every name that came (True) or went, for whoever follows."""

    def __contains__(self, name: int) -> bool:
        return name in self._uses or name in self._idle

    def __len__(self) -> int:
        return len(self._uses) + len(self._idle)

    def lead(self, names: Sequence[int]) -> int:
        """How many of the first names are cached."""
        uses, idle = self._uses, self._idle
        count = 0
        for name in names:
            if name not in uses and name not in idle:
                break
            count += 1
        return count

    @property
    def room(self) -> int:
        """Blocks that could be taken."""
        return self.capacity - self.used

    def hold(self, names: Iterable[int]) -> None:
        """One more use of blocks that are cached."""
        uses, idle = self._uses, self._idle
        for name in names:
            if name in uses:
                uses[name] += 1
            else:
                del idle[name]
                uses[name] = 1
                self.used += 1

    def take(self, count: int) -> None:
        """Empty blocks, `count` of at most `room`; cached ones make way."""
        self.used += count
        for _ in range(self.used + len(self._idle) - self.capacity):
            name, _ = self._idle.popitem(last=False)
            if self.changes is not None:
                self.changes.append((name, False))

    def fill(self, names: Iterable[int]) -> None:
        """Blocks that were taken now hold these; one that somebody else filled meanwhile is given back."""
        uses, idle = self._uses, self._idle
        for name in names:
            if name in uses:
                uses[name] += 1
                self.used -= 1
                continue
            if name in idle:
                del idle[name]
            elif self.changes is not None:
                self.changes.append((name, True))
            uses[name] = 1

    def release(self, names: Sequence[int], empty: int = 0) -> None:
        """A request's blocks are not needed any more: those with a name stay cached, `empty` ones do not."""
        uses, idle = self._uses, self._idle
        self.used -= empty
        for name in reversed(names):
            left = uses[name] - 1
            if left:
                uses[name] = left
            else:
                del uses[name]
                idle[name] = None
                self.used -= 1

    def know(self, names: Sequence[int]) -> None:
        """Blocks that were computed and left before now, as far as they are not cached."""
        new = names[self.lead(names) :]
        self.take(len(new))
        self.fill(new)
        self.release(new)

    def check(self) -> None:
        """Raise AssertionError if the books do not balance."""
        assert not self._uses.keys() & self._idle.keys()
        assert all(count > 0 for count in self._uses.values())
        assert len(self._uses) <= self.used <= self.capacity
        assert self.used + len(self._idle) <= self.capacity
