"""What only the index in this process has: a bound on its memory."""

import pytest

from gateway.index.contract import Holder, Removed, Stored, UnknownParent
from gateway.index.memory import MemoryIndex
from tests.index.test_contract import prompt

A, B = Holder("http://a:1"), Holder("http://b:1")


async def test_a_full_index_refuses_what_nobody_holds_and_takes_it_when_there_is_room() -> None:
    index = MemoryIndex(limit_blocks=100)
    first, second = await index.open(A), await index.open(B)
    held, late = prompt(80), prompt(80, b"\2" * 8)
    await first.apply([Stored(None, held)])
    await second.apply([Stored(None, late)])
    assert (await index.stats()).blocks == 100
    assert index.refused == 60
    assert dict((await index.match(late)).held) == {B: 20}
    await second.apply([Stored(None, held)])  # held by another: takes no room
    assert dict((await index.match(held)).held) == {A: 80, B: 80}
    for writer in (first, second):
        await writer.apply([Removed(held)])
    await second.apply([Stored(None, late)])
    assert dict((await index.match(late)).held) == {B: 80}


async def test_what_hangs_from_refused_blocks_is_refused_and_no_lost_event() -> None:
    index = MemoryIndex(limit_blocks=10)
    first, second = await index.open(A), await index.open(B)
    long = prompt(20)
    await first.apply([Stored(None, long), Stored(long[-8:], prompt(5, b"\3" * 8))])
    assert index.refused == 15
    with pytest.raises(UnknownParent):
        await second.apply([Stored(long[-8:], prompt(5, b"\3" * 8))])


async def test_a_run_that_names_one_block_twice_leaves_the_index_whole() -> None:
    index = MemoryIndex()
    writer = await index.open(A)
    await writer.apply([Stored(None, prompt(1) * 2)])
    await writer.close()
    await index.sweep()
    assert (await index.stats()).nodes == 0
