"""What gateways see of caches, against sets that do the same slowly."""

from hypothesis import given, settings
from hypothesis import strategies as st

from load.replay.sight import Guess, Sight

ENGINES = 5
NAMES = st.integers(0, 7)
CHANGES = st.lists(st.tuples(st.floats(0, 10), st.integers(0, ENGINES - 1), NAMES, st.booleans()), max_size=40).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)


def slowly(held: list[set[int]], names: list[int]) -> dict[int, int]:
    """Engines that hold the first of the names, and how many."""
    found = {}
    for engine, having in enumerate(held):
        lead = next((at for at, name in enumerate(names) if name not in having), len(names))
        if lead:
            found[engine] = lead
    return found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(changes=CHANGES, names=st.lists(NAMES, max_size=6), delay=st.sampled_from([0.0, 2.0]), now=st.floats(10, 13))
def test_all_engines_are_looked_up_at_once(
    changes: list[tuple[float, int, int, bool]], names: list[int], delay: float, now: float
) -> None:
    sight = Sight(ENGINES, delay)
    held: list[set[int]] = [set() for _ in range(ENGINES)]
    for at, engine, name, came in changes:
        sight.changed(engine, name, came, at)
        if at + delay <= now:
            (held[engine].add if came else held[engine].discard)(name)
    assert dict(sight.leads(names, now)) == slowly(held, names)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sent=st.lists(st.tuples(st.integers(0, ENGINES - 1), st.lists(NAMES, max_size=5, unique=True)), max_size=30),
    names=st.lists(NAMES, max_size=6),
)
def test_guesses_are_the_last_blocks_that_were_sent(sent: list[tuple[int, list[int]]], names: list[int]) -> None:
    room = 6
    sight = Guess(ENGINES, room)
    order: list[list[int]] = [[] for _ in range(ENGINES)]
    for engine, blocks in sent:
        sight.sent(engine, blocks)
        for name in reversed(blocks):  # the last block of a prompt goes first
            if name in order[engine]:
                order[engine].remove(name)
            order[engine].append(name)
        order[engine] = order[engine][-room:]
    assert dict(sight.leads(names, 0.0)) == slowly([set(names) for names in order], names)
