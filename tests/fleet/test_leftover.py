"""KV that nobody comes for counts until its lease ends, no longer, and is gone with its engine."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from engines.fleet import Role
from gateway.fleet.engine import Engine
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


async def test_it_ends_where_nobody_knows_how_much_fits() -> None:
    engine = Engine("p0", "http://127.0.0.1:1", Role.PREFILL)
    now = asyncio.get_running_loop().time()
    for _ in range(100):
        engine.leftover.add(1000, now - 1.0)
    assert engine.kv_room == 0
    assert not engine.leftover
