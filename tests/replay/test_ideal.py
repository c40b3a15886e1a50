"""Bounds of hit rates: the oracle's equals the best of all ways to forget, and the others stay below."""

from functools import lru_cache
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from load.replay.ideal import ideal, infinite, lru, oracle
from load.replay.trace import Ask

PREFIXES = ((1,), (1, 2), (1, 2, 3), (1, 4), (5,), (5, 6), (7,), (8, 9))


def ask(names: tuple[int, ...]) -> Ask:
    """Blocks of one token, and one token more, so that all of them are looked up."""
    return Ask(0.0, len(names) + 1, 1, names)


def best(asks: list[Ask], capacity: int) -> int:
    """Try every set of blocks that could be kept after each request."""

    @lru_cache(None)
    def rest(at: int, held: frozenset[int]) -> int:
        if at == len(asks):
            return 0
        names = asks[at].names
        hits = next((depth for depth, name in enumerate(names) if name not in held), len(names))
        there = held | set(names)
        kept = combinations(sorted(there), min(capacity, len(there)))
        return hits + max(rest(at + 1, frozenset(few)) for few in kept)

    return rest(0, frozenset())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PREFIXES), max_size=6), st.integers(1, 3))
def test_nobody_does_better_than_the_oracle_and_somebody_as_well(prompts: list[tuple[int, ...]], capacity: int) -> None:
    asks = [ask(names) for names in prompts]
    assert oracle(asks, 1, capacity) == best(asks, capacity)
    assert lru(asks, 1, capacity) <= oracle(asks, 1, capacity) <= infinite(asks, 1)


def test_with_room_for_all_they_are_equal() -> None:
    asks = [ask(names) for names in PREFIXES * 3]
    assert infinite(asks, 1) == lru(asks, 1, 99) == oracle(asks, 1, 99) > 0


def test_shares_are_of_all_prompt_tokens() -> None:
    found = ideal([ask((1, 2, 3)), ask((1, 2, 3))], 1, 2)
    assert (found.infinite, found.oracle, found.lru) == (3 / 8, 2 / 8, 2 / 8)
    assert ideal([], 1, 1).infinite == 0
