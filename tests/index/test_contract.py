"""What every implementation promises beside the blocks themselves: guesses, sessions, takeover, inspection."""

import pytest
from xxhash import xxh3_64_digest

from gateway.index.contract import Holder, Lost, Removed, Stored, UnknownParent
from tests.index.conftest import Made, Maker

A, B = Holder("http://a:1"), Holder("http://b:1", 1, "cpu")


def prompt(blocks: int, start: bytes = b"") -> bytes:
    """A prompt of so many blocks."""
    hashes = [start or b"\1" * 8]
    while len(hashes) < blocks:
        hashes.append(xxh3_64_digest(hashes[-1]))
    return b"".join(hashes)


@pytest.fixture
async def made(maker: Maker) -> Made:
    return await maker.make()


async def test_guesses_end_and_are_told_apart(made: Made) -> None:
    index, long = made.index, prompt(100)
    index.expect(long, ["http://a:1#7"], 5.0)
    index.learn(long[: 8 * 40], ["http://b:1#0"], 60.0)
    index.expect(prompt(3, b"\2" * 8), ["http://a:1#7"], 0.0)
    match = await index.match(long)
    assert (dict(match.held), dict(match.expected), dict(match.learned)) == (
        {},
        {"http://a:1#7": 100},
        {"http://b:1#0": 32},
    )
    shared = await index.match(long[: 8 * 70] + prompt(20, b"\3" * 8))
    assert dict(shared.expected) == {"http://a:1#7": 64}
    assert dict((await index.match(prompt(3, b"\2" * 8))).expected) == {}
    await made.close()


async def test_a_session_is_bound_to_the_last_engine(made: Made) -> None:
    index, hashes = made.index, prompt(4)
    index.bind(hashes, b"session1", "http://a:1", 60.0)
    index.bind(hashes, b"session1", "http://b:1", 60.0)
    index.bind(hashes, b"session2", "http://a:1", 0.001)
    assert (await index.match(hashes, b"session1")).session == "http://b:1"
    assert (await index.match(hashes, b"session3")).session == ""
    assert (await index.match(hashes)).session == ""
    await made.close()


async def test_a_holder_that_was_taken_over_or_forgotten_gives_no_credit_at_once(made: Made) -> None:
    index, hashes = made.index, prompt(50)
    first, other = await index.open(A), await index.open(B)
    await first.apply([Stored(None, hashes)])
    await other.apply([Stored(None, hashes[: 8 * 10])])
    assert dict((await index.match(hashes)).held) == {A: 50, B: 10}
    second = await index.open(A)
    assert dict((await index.match(hashes)).held) == {B: 10}
    with pytest.raises(Lost):
        await first.apply([Stored(None, hashes)])
    await second.apply([Stored(None, hashes[:16])])
    await index.forget(B)
    assert dict((await index.match(hashes)).held) == {A: 2}
    assert await index.sweep() > 0
    assert await index.sweep() == 0
    assert dict((await index.match(hashes)).held) == {A: 2}
    await made.close()


async def test_blocks_behind_a_hole_count_again_when_it_is_filled(made: Made) -> None:
    index, hashes = made.index, prompt(80)
    writer = await index.open(A)
    await writer.apply([Stored(None, hashes)])
    await writer.apply([Removed(hashes[8 * 40 : 8 * 41])])
    assert dict((await index.match(hashes)).held) == {A: 40}
    await writer.apply([Stored(hashes[8 * 39 : 8 * 40], hashes[8 * 40 : 8 * 41])])
    assert dict((await index.match(hashes)).held) == {A: 80}
    await made.close()


async def test_what_comes_before_an_unknown_parent_is_applied(made: Made) -> None:
    index, hashes = made.index, prompt(9)
    writer = await index.open(A)
    with pytest.raises(UnknownParent):
        await writer.apply([Stored(None, hashes[:24]), Stored(b"unknown!", prompt(2, b"\4" * 8)), Removed(hashes[:8])])
    assert dict((await index.match(hashes)).held) == {A: 3}
    await made.close()


async def test_inspection_counts_what_is_there(made: Made) -> None:
    index, hashes = made.index, prompt(70)
    one, two = await index.open(A), await index.open(B)
    await one.apply([Stored(None, hashes)])
    await two.apply([Stored(None, hashes[: 8 * 33])])
    stats = await index.stats()
    assert (stats.nodes, stats.blocks, stats.pairs) == (3, 70, 103)
    assert dict(stats.holders) == {"http://a:1": 70, "http://b:1 rank 1 (cpu)": 33}
    top = (await index.runs())[0]
    assert (top.head, top.blocks, dict(top.holders)) == (
        hashes[:8].hex(),
        32,
        {"http://a:1": 32, "http://b:1 rank 1 (cpu)": 32},
    )
    await made.close()


async def test_a_long_prompt_is_matched_to_its_end(made: Made) -> None:
    index, hashes = made.index, prompt(6250)
    writer = await index.open(A)
    await writer.apply([Stored(None, hashes)])
    assert dict((await index.match(hashes)).held) == {A: 6250}
    assert dict((await index.match(hashes[: 8 * 3001] + prompt(50, b"\5" * 8))).held) == {A: 3001}
    await made.close()
