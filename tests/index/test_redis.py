"""What can happen to a server and between gateways: flushed, slow, dead and back, misconfigured, shared."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.index.contract import Holder, InFlight, Lost, Stored, Unavailable, Writer
from gateway.index.embedded import Embedded
from gateway.index.redis import IndexMisconfigured, RedisIndex, library
from gateway.index.redis.budget import Budget
from tests.index.servers import KINDS, server
from tests.index.test_contract import prompt

A = Holder("http://a:1")


@pytest.fixture(params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Embedded]:
    with server(request.param) as started:
        yield started


async def depth(index: RedisIndex, hashes: bytes) -> int:
    return (await index.match(hashes)).held.get(A, 0)


async def back(index: RedisIndex, hashes: bytes) -> None:
    """Wait until matches are answered again."""
    async with asyncio.timeout(5):
        while True:
            try:
                await index.match(hashes)
                return
            except Unavailable:
                await asyncio.sleep(0.01)


async def connect(running: Embedded, **more: Any) -> RedisIndex:
    return await RedisIndex.connect(running.url, "m:16", **{"budget_s": 1.0, **more})


async def test_a_lost_library_is_given_back(running: Embedded) -> None:
    index, hashes = await connect(running), prompt(5)
    writer = await index.open(A)
    with running.client() as client:
        client.function_flush()
        await writer.apply([Stored(None, hashes)])
        client.function_flush()
        client.script_flush()
        await back(index, hashes)
        assert await depth(index, hashes) == 5
    await index.close()


async def test_an_older_version_of_the_library_lives_beside_ours(running: Embedded) -> None:
    with running.client() as client:
        client.function_load(library.SOURCE.replace(library.NAME, "baton_older"))
        index = await connect(running)
        writer = await index.open(A)
        await writer.apply([Stored(None, prompt(5))])
        names = {found[b"library_name"] if isinstance(found, dict) else found[1] for found in client.function_list()}
        assert names == {b"baton_older", library.NAME.encode()}
    await index.close()


async def test_an_emptied_server_says_that_all_is_lost(running: Embedded) -> None:
    index, hashes = await connect(running), prompt(5)
    writer = await index.open(A)
    await writer.apply([Stored(None, hashes)])
    with running.client() as client:
        client.flushall()
    assert await depth(index, hashes) == 0
    with pytest.raises(Lost):
        await writer.apply([Stored(hashes[-8:], prompt(2, b"\6" * 8))])
    again: Writer = await index.open(A)
    await again.apply([Stored(None, hashes)])
    assert await depth(index, hashes) == 5
    await index.close()


async def test_a_slow_server_costs_no_more_than_the_budget(running: Embedded) -> None:
    index, hashes = await connect(running, budget_s=0.005), prompt(5)
    with running.client() as client:
        client.client_pause(60_000, all=False)
        for _ in range(20):
            with pytest.raises(Unavailable):
                await index.match(hashes)
        client.client_unpause()
    await back(index, hashes)
    await index.close()


async def test_a_server_that_dies_and_comes_back_is_used_again(running: Embedded) -> None:
    index, hashes = await connect(running), prompt(5)
    await (await index.open(A)).apply([Stored(None, hashes)])
    running.kill()
    with pytest.raises(Unavailable):
        await index.match(hashes)
    running.start()
    await back(index, hashes)
    async with asyncio.timeout(5):
        writer = await index.open(A)
        await writer.apply([Stored(None, hashes)])
    assert await depth(index, hashes) == 5
    await index.close()


async def test_a_server_that_evicts_is_refused_with_the_mend(running: Embedded) -> None:
    with running.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(IndexMisconfigured, match="maxmemory-policy noeviction"):
        await connect(running)


async def test_every_answer_has_its_time_and_no_more() -> None:
    budget, loop = Budget(0.01), asyncio.get_running_loop()
    first, answered, last = (loop.create_future() for _ in range(3))
    budget.watch(first)
    budget.watch(answered)
    answered.set_result(1)
    with pytest.raises(TimeoutError):
        await first
    budget.watch(last)
    assert not last.done()
    with pytest.raises(TimeoutError):
        await last
    assert answered.result() == 1


async def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await RedisIndex.connect("unix:///nowhere/at/all", "m:16")


async def test_gateways_see_each_others_load_until_it_ends(running: Embedded) -> None:
    one, two = await connect(running, gateway="one"), await connect(running, gateway="two")
    two.know(["http://p:1", "http://d:1"])
    expected = {"http://p:1": InFlight(1, 500, 0, 0), "http://d:1": InFlight(0, 0, 1, 500)}
    one.publish(lambda: expected)
    await one.match(prompt(1))
    assert dict((await two.match(prompt(1))).others) == expected
    assert dict((await one.match(prompt(1))).others) == {}
    one.publish(dict)
    await one.match(prompt(1))
    assert dict((await two.match(prompt(1))).others) == {}
    await one.close()
    await two.close()


async def test_a_gateway_that_is_alone_tells_its_load_now_and_then(
    running: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    one, two = await connect(running, gateway="one"), await connect(running, gateway="two")
    two.know(["http://p:1"])
    busy = 0
    one.publish(lambda: {"http://p:1": InFlight(busy)})

    def blob() -> bytes:
        with running.client() as client:
            (key,) = client.keys("*l")
            return bytes(client.hget(key, "one"))

    await one.match(prompt(1))
    before = blob()
    busy = 1
    await one.match(prompt(1))
    assert blob() == before, "nobody is there to read it"
    now += 0.11  # more than a beat, however it is rounded
    await one.match(prompt(1))
    assert blob() != before
    await two.match(prompt(1))
    await one.match(prompt(1))
    busy = 2
    await one.match(prompt(1))
    assert (await two.match(prompt(1))).others == {"http://p:1": InFlight(2)}, "who is there is told at once"
    await one.close()
    await two.close()


async def test_engines_that_are_not_known_any_more_are_not_spoken_of(running: Embedded) -> None:
    one, two = await connect(running, gateway="one"), await connect(running, gateway="two")
    load = InFlight(1, 500, 0, 0)
    for number in range(50):
        two.know([f"http://p:{number}", f"http://p:{number}#1"])
    one.publish(lambda: {"http://p:48": load, "http://p:49": load})
    await one.match(prompt(1))
    assert dict((await two.match(prompt(1))).others) == {"http://p:49": load}
    await one.close()
    await two.close()


async def test_the_load_of_a_dead_gateway_vanishes(running: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await connect(running, gateway="one"), await connect(running, gateway="two")
    two.know(["http://p:1"])
    one.publish(lambda: {"http://p:1": InFlight(1, 500, 0, 0)})
    await one.match(prompt(1))
    await one.close()
    assert (await two.match(prompt(1))).others
    later = time.time() + 3.1
    monkeypatch.setattr(time, "time", lambda: later)
    assert not (await two.match(prompt(1))).others
    with running.client() as client:
        (key,) = client.keys("*l")
        assert client.hexists(key, "one")
        gone = later + 60
        monkeypatch.setattr(time, "time", lambda: gone)
        await two.sweep()
        assert not client.hexists(key, "one")
    await two.close()


async def test_guesses_and_sessions_are_shared(running: Embedded) -> None:
    one, two = await connect(running), await connect(running)
    two.know(["http://p:1#1"])
    one.expect(prompt(40), ["http://p:1#1"], 5)
    one.bind(prompt(40), b"session1", "http://p:1#1", 5)
    async with asyncio.timeout(2):
        while not (match := await two.match(prompt(40), b"session1")).session:
            pass
    assert dict(match.expected) == {"http://p:1#1": 40}
    await one.close()
    await two.close()


async def test_one_gateway_at_a_time_has_a_lease(running: Embedded) -> None:
    one, two = await connect(running, gateway="one"), await connect(running, gateway="two")
    assert await one.lease("x", 0.2)
    assert not await two.lease("x", 0.2)
    assert await one.lease("x", 0.2)
    await two.release("x")
    assert not await two.lease("x", 0.2)
    await one.release("x")
    assert await two.lease("x", 30)
    await one.close()
    await two.close()


async def test_on_a_cluster_every_call_stays_in_one_slot() -> None:
    with server("redis", "--cluster-enabled", "yes") as running, running.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        async with asyncio.timeout(5):
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                await asyncio.sleep(0.01)
        index, hashes = await connect(running, shards=3), prompt(40)
        writer = await index.open(A)
        await writer.apply([Stored(None, hashes), Stored(None, prompt(40, b"\7" * 8))])
        assert await depth(index, hashes) == 40
        assert await depth(index, prompt(40, b"\7" * 8)) == 40
        await index.sweep()
        await index.close()


async def test_memory_of_the_server_is_flat_under_churn(running: Embedded) -> None:
    index = await connect(running)
    sizes = []
    for turn in range(30):
        writer = await index.open(A)
        await writer.apply([Stored(None, prompt(500, turn.to_bytes(8, "little")))])
        await index.sweep()
        with running.client() as client:
            sizes.append(client.memory_usage(index._shards[0].nodes, samples=0))
    assert max(sizes[5:]) <= 1.1 * min(sizes[5:])
    await index.close()
