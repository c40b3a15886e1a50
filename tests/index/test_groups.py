"""One index behind sentinels and on a cluster: it works there, and goes on when a primary dies or slots move."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from engines import store
from engines.store import Address, StoreError
from gateway.index.contract import Holder, Lost, Stored, Unavailable
from gateway.index.redis import IndexMisconfigured, RedisIndex
from tests.index.groups import BINARIES, Clustered, Watched, until
from tests.index.test_contract import prompt

A = Holder("http://a:1")


@pytest.fixture
def watched() -> Iterator[Watched]:
    with Watched("valkey") as group:
        yield group


@pytest.fixture
def clustered() -> Iterator[Clustered]:
    with Clustered("redis" if BINARIES["redis"] else "valkey") as group:
        yield group


async def stored(index: RedisIndex, hashes: bytes) -> None:
    """Store, again if what was written is lost, until that is done."""
    async with asyncio.timeout(20):
        while True:
            try:
                await (await index.open(A)).apply([Stored(None, hashes)])
                return
            except (Unavailable, Lost):
                await asyncio.sleep(0.05)


async def depth(index: RedisIndex, hashes: bytes) -> int:
    async with asyncio.timeout(20):
        while True:
            try:
                return (await index.match(hashes)).held.get(A, 0)
            except Unavailable:
                await asyncio.sleep(0.02)


async def blocks(index: RedisIndex) -> int:
    async with asyncio.timeout(20):
        while True:
            try:
                return (await index.stats()).blocks
            except Unavailable:
                await asyncio.sleep(0.02)


async def test_behind_sentinels_a_primary_is_left_when_it_is_demoted_and_when_it_dies(watched: Watched) -> None:
    index = await RedisIndex.connect(watched.url, "m:16", budget_s=1.0)
    await stored(index, prompt(40))
    assert await depth(index, prompt(40)) == 40
    watched.written(watched.primary)
    watched.client(watched.sentinels[0]).execute_command("SENTINEL", "FAILOVER", "fleet")
    until(lambda: watched.client(watched.primary).info("replication")["role"] == "slave")
    assert await depth(index, prompt(40)) == 40
    await stored(index, prompt(50, b"\5" * 8))
    assert await depth(index, prompt(50, b"\5" * 8)) == 50
    until(lambda: watched.follows(watched.primary))
    watched.written(watched.replica)  # they have changed their parts
    watched.kill(watched.replica)
    assert await depth(index, prompt(50, b"\5" * 8)) == 50
    await stored(index, prompt(60, b"\6" * 8))
    assert await depth(index, prompt(60, b"\6" * 8)) == 60
    assert watched.client(watched.primary).info("replication")["role"] == "master"
    assert await blocks(index) >= 60
    await index.close()


async def test_on_a_cluster_slots_move_and_primaries_die(clustered: Clustered) -> None:
    index = await RedisIndex.connect(f"redis://127.0.0.1:{clustered.primaries[0]}", "m:16", shards=6, budget_s=1.0)
    prompts = [prompt(20, bytes([number]) * 8) for number in range(24)]
    slots = [key_slot(shard.nodes) for shard in index._shards]
    assert {slot // 5462 for slot in slots} == {0, 1, 2}, "shards on each of the nodes"
    writer = await index.open(A)
    await writer.apply([Stored(None, hashes) for hashes in prompts])
    assert [await depth(index, hashes) for hashes in prompts] == [20] * 24
    assert (await index.stats()).holders == {A.engine: 24 * 20}
    moving = next(slot for slot in slots if slot // 5462 == 0)
    move(clustered, moving, clustered.primaries[0], clustered.primaries[2])
    assert [await depth(index, hashes) for hashes in prompts] == [20] * 24
    clustered.written(clustered.primaries[1])
    clustered.kill(clustered.primaries[1])
    assert [await depth(index, hashes) for hashes in prompts] == [20] * 24
    await stored(index, prompt(30, b"\x55" * 8))
    assert await depth(index, prompt(30, b"\x55" * 8)) == 30
    await index.close()


def move(clustered: Clustered, slot: int, source: int, target: int) -> None:
    """As an operator does it."""
    ids = {port: clustered.client(port).execute_command("CLUSTER", "MYID") for port in (source, target)}
    clustered.client(target).execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    clustered.client(source).execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    raw: Any = redis.Redis(port=source)
    names = raw.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    raw.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *names)
    for port in (target, source, clustered.primaries[1]):
        clustered.client(port).execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])


def test_what_urls_mean() -> None:
    assert store.parse("redis://me:pw@h:1/3") == ("", (Address("h", 1),), "", "me", "pw", 3, False)
    assert store.parse("rediss://h").tls
    assert store.parse("unix:///a/b").seeds == (Address(path="/a/b"),)
    assert store.parse("redis+sentinel://:p%40w@a,b:7,[::1]:8/fleet/2") == (
        "redis+sentinel",
        (Address("a", 26379), Address("b", 7), Address("::1", 8)),
        "fleet",
        "",
        "p@w",
        2,
        False,
    )
    assert store.parse("redis+cluster://a:1,b").seeds == (Address("a", 1), Address("b", 6379))


@pytest.mark.parametrize(
    ("url", "mend"),
    [
        ("http://h", "give one of redis"),
        ("redis+sentinel://h:1", "the name of the primary in sentinel.conf"),
        ("redis+sentinel:///fleet", "give redis+sentinel://host:port,host:port"),
        ("redis+cluster://h:x", "the port is no number"),
        ("redis+sentinel://h/fleet/x", "give a number"),
    ],
)
async def test_urls_that_cannot_be_used(url: str, mend: str) -> None:
    with pytest.raises(StoreError, match=re.escape(mend)):
        store.parse(url)
    with pytest.raises(IndexMisconfigured, match=re.escape(mend)):
        await RedisIndex.connect(url, "m:16")
