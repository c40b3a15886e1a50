"""The modelled block pool, step by step against lists that do the same slowly."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engines.model.blocks import Blocks

CAPACITY = 12


class Pools(RuleBasedStateMachine):
    """Requests over a few shared prefixes come and go."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Blocks(CAPACITY)
        self.held: dict[int, tuple[list[int], int]] = {}
        self.idle: list[int] = []
        self.count = 0

    def used(self) -> int:
        names = {name for names, _ in self.held.values() for name in names}
        return len(names) + sum(empty for _, empty in self.held.values())

    @rule(target=requests, family=st.integers(0, 2), length=st.integers(0, 5), empty=st.integers(0, 2))
    def come(self, family: int, length: int, empty: int) -> int:
        names = [100 * family + at for at in range(length)]
        in_use = {name for held, _ in self.held.values() for name in held}
        lead = 0
        while lead < length and (names[lead] in in_use or names[lead] in self.idle):
            lead += 1
        assert self.pool.lead(names) == lead
        self.pool.hold(names[:lead])
        more = length - lead + empty
        free = CAPACITY - self.used() - len({*names[:lead]} - in_use)
        assert self.pool.room == free
        number = self.count = self.count + 1
        if more > free:
            self.pool.release(names[:lead])
            self._put_back(names[:lead])
            self.held[number] = ([], 0)
            return number
        self.pool.take(more)
        self.idle = [name for name in self.idle if name not in names[:lead]]
        self.held[number] = (names[:lead], more)
        while self.used() + len(self.idle) > CAPACITY:
            self.idle.pop(0)
        self.pool.fill(names[lead:])
        self.idle = [name for name in self.idle if name not in names]
        self.held[number] = (names, empty)
        return number

    @rule(number=consumes(requests))
    def go(self, number: int) -> None:
        names, empty = self.held.pop(number)
        self.pool.release(names, empty)
        self._put_back(names)

    def _put_back(self, names: list[int]) -> None:
        in_use = {name for held, _ in self.held.values() for name in held}
        for name in reversed(names):
            if name not in in_use:
                if name in self.idle:
                    self.idle.remove(name)
                self.idle.append(name)

    @invariant()
    def agree(self) -> None:
        self.pool.check()
        assert self.pool.used == self.used()
        assert list(self.pool._idle) == self.idle


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
