"""KV that nobody comes for counts until its lease ends, no longer, and is gone with its engine."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.leftover import Leftover


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(1, 1000)), max_size=30))
def test_it_is_what_a_plain_list_says(steps: list[tuple[float, int]]) -> None:
    left, now = Leftover(), 0.0
    kept: list[tuple[float, int]] = []
    for wait, tokens in steps:
        now += wait
        left.add(tokens, now + 30.0)
        kept.append((now + 30.0, tokens))
        assert left.tokens(now) == sum(n for until, n in kept if until > now)
    assert left.tokens(now + 31.0) == 0
    assert not left
