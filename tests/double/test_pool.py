"""The block pool against a model without free lists: dictionaries and a list of moments of release."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.double.pool import Block, Pool, chain, root

SIZE = 2
PROMPTS = st.lists(st.integers(1, 2), min_size=1, max_size=9)


class Told:
    """Keeps count of what the listener was told the cache holds."""

    def __init__(self) -> None:
        self.names: Counter[int] = Counter()
        self.parents: dict[int, int | None] = {}

    def stored(
        self, names: list[int], parent: int | None, tokens: list[int], salt: str | None, lora: str | None = None
    ) -> None:
        assert len(tokens) == len(names) * SIZE
        for at, name in enumerate(names):
            assert name == chain(root(salt) if parent is None else parent, tokens[at * SIZE : at * SIZE + SIZE])
            self.names[name] += 1
            parent = name

    def removed(self, name: int) -> None:
        assert self.names[name] > 0
        self.names[name] -= 1

    def cleared(self) -> None:
        self.names.clear()


def names_of(tokens: list[int]) -> list[int]:
    names: list[int] = []
    for at in range(0, len(tokens) - SIZE + 1, SIZE):
        names.append(chain(names[-1] if names else root(), tokens[at : at + SIZE]))
    return names


class PoolAgainstModel(RuleBasedStateMachine):
    @initialize(count=st.integers(2, 12))
    def start(self, count: int) -> None:
        self.told = Told()
        self.pool = Pool(count, SIZE, self.told)
        self.live: list[tuple[list[int], list[Block]]] = []
        self.holders: Counter[int] = Counter()
        self.holds: dict[int, int] = {}
        """block id -> name, for named blocks"""
        self.released: list[int] = [block.id for block in self.pool.blocks[1:]]
        """free block ids, the next one to be reused first"""

    @rule(tokens=PROMPTS)
    def admit(self, tokens: list[int]) -> None:
        names = names_of(tokens)
        expected = 0
        for name in names[: (len(tokens) - 1) // SIZE]:
            if name not in self.holds.values():
                break
            expected += 1
        hit = self.pool.find(names[: (len(tokens) - 1) // SIZE])
        assert [block.name for block in hit] == names[:expected]
        self.pool.hold(hit)
        free = [number for number in self.released if number not in {block.id for block in hit}]
        need = -(-len(tokens) // SIZE) - len(hit)
        more = self.pool.take(need)
        if need > len(free):
            assert more is None
            self.pool.release(hit)
            unheld = [block.id for block in hit if not self.holders[block.id]]
            self.released = [number for number in free if number not in unheld] + unheld[::-1]
            return
        assert more is not None
        assert [block.id for block in more] == free[:need]
        self.released = free[need:]
        for block in [*hit, *more]:
            self.holders[block.id] += 1
        for block in more:
            self.holds.pop(block.id, None)
            assert block.content.tokens == []
        blocks = [*hit, *more]
        self.pool.cache(blocks, names, len(hit), tokens[len(hit) * SIZE : len(names) * SIZE])
        for block, name in zip(blocks, names, strict=False):
            self.holds[block.id] = name
        self.live.append((tokens, blocks))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        _, blocks = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.pool.release(blocks)
        for block in reversed(blocks):
            self.holders[block.id] -= 1
            if self.holders[block.id]:
                continue
            if block.id in self.holds:
                self.released.append(block.id)
            else:
                self.released.insert(0, block.id)

    @rule()
    def reset(self) -> None:
        done = self.pool.reset()
        assert done is (not self.live)
        if done:
            self.holds.clear()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert self.pool.free == len(self.released)
        assert self.pool.cached() == frozenset(self.holds.values())
        assert +self.told.names == Counter(self.holds.values())
        assert self.pool.usage == 1 - len(self.released) / (len(self.pool.blocks) - 1)


TestPool = PoolAgainstModel.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_names_depend_on_all_tokens_before_and_on_the_salt() -> None:
    assert chain(root(), [1, 2]) != chain(root("secret"), [1, 2])
    assert names_of([1, 2, 1, 2])[0] != names_of([1, 2, 1, 2])[1]
    assert names_of([1, 1, 1, 2])[1] != names_of([2, 1, 1, 2])[1]
    assert all(0 <= name < 2**64 for name in names_of(list(range(1, 50))))
