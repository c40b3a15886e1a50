"""Engines' events into an index, over real sockets: the index is equal to what the engines hold, whatever happens."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from engines.double import Double, pool, tokens
from gateway.index.contract import Holder
from gateway.index.embedded import Embedded
from gateway.index.events.election import Always
from gateway.index.events.ingest import Ingest
from gateway.index.events.source import sources
from gateway.index.events.status import State
from gateway.index.memory import MemoryIndex
from gateway.index.redis import RedisIndex
from gateway.prompt.reading import of_ids
from tests.gateway.conftest import until

FEW: dict[str, Any] = {"num_blocks": 129, "max_model_len": 2048}


def prompt(number: int, words: int = 60) -> str:
    return " ".join(f"w{number}x{at}" for at in range(words))


async def ask(double: Double, number: int, words: int = 60) -> None:
    async with httpx.AsyncClient(base_url=double.url, trust_env=False) as http:
        body = {"model": "m", "prompt": prompt(number, words), "max_tokens": 2}
        (await http.post("/v1/completions", json=body)).raise_for_status()


async def follow(ingest: Ingest, double: Double) -> None:
    async with httpx.AsyncClient(base_url=double.url, trust_env=False) as http:
        await ingest.add(double.url, await sources(double.url, http))


async def depth(index: Any, double: Double, number: int, words: int = 60) -> int:
    ids = array("I", tokens.encode(prompt(number, words))).tobytes()
    match = await index.match(of_ids(ids, "m", 16).hashes)
    return int(match.held.get(Holder(double.url), 0))


def truth(double: Double, number: int, words: int = 60) -> int:
    """Leading blocks of the prompt that the engine itself would find."""
    ids, size = tokens.encode(prompt(number, words)), double.limits.block_size
    names: list[int] = []
    for start in range(0, len(ids) - size + 1, size):
        names.append(pool.chain(names[-1] if names else pool.root(None), ids[start : start + size]))
    return len(double.engine.pool.find(names))


async def equal(ingest: Ingest, index: Any, double: Double, prompts: int, within_s: float = 5.0) -> None:
    """Wait until the ledger is the engine's own set, and the index answers for every prompt as the engine would."""
    await until(lambda: ingest.names(double.url) == double.engine.pool.cached(), within_s)
    async with asyncio.timeout(within_s):
        while any([await depth(index, double, n) != truth(double, n) for n in range(prompts)]):
            await asyncio.sleep(0.002)


@asynccontextmanager
async def followed(**more: Any) -> AsyncIterator[tuple[Double, MemoryIndex, Ingest]]:
    async with Double("both", "e", **{"events": True, **FEW, **more}) as double:
        index = MemoryIndex()
        ingest = Ingest(index, Always(), "m", 16)
        await follow(ingest, double)
        try:
            yield double, index, ingest
        finally:
            await ingest.close()


def status(ingest: Ingest) -> Any:
    return ingest.status()[0]


async def test_stores_and_evictions_arrive() -> None:
    async with followed() as (double, index, ingest):
        for number in range(20):
            await ask(double, number % 7)
        await equal(ingest, index, double, 7)
        assert double.engine.pool.cached()
        assert status(ingest).gaps == 0


async def test_a_gap_is_replayed() -> None:
    async with followed() as (double, index, ingest):
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        double.faults.lose_events = 2
        for number in range(1, 6):
            await ask(double, number)
        await equal(ingest, index, double, 6)
        assert (status(ingest).gaps, status(ingest).resyncs) == (1, 0)


@pytest.mark.parametrize("room", [0, 1, 3])
async def test_what_was_published_before_is_replayed_and_what_is_dropped_then_asked_for_again(room: int) -> None:
    async with Double("both", "e", events=True, **FEW) as double:
        double.faults.replay_room = room
        for number in range(12):
            await ask(double, number)
        index = MemoryIndex()
        ingest = Ingest(index, Always(), "m", 16)
        await follow(ingest, double)
        await equal(ingest, index, double, 12, within_s=20)
        assert status(ingest).orphans == 0
        await ingest.close()


async def test_batches_lost_before_a_silence_are_found() -> None:
    async with followed() as (double, index, ingest):
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        double.faults.lose_events = 20
        await ask(double, 1)
        await equal(ingest, index, double, 2)
        assert status(ingest).resyncs == 0


async def test_a_gap_that_cannot_be_replayed_drops_all_credit_and_learns_again() -> None:
    async with followed(events=False, events_port=0) as (double, index, ingest):
        async with asyncio.timeout(20), httpx.AsyncClient(base_url=double.url, trust_env=False) as http:
            while not await depth(index, double, 0):  # what is published before the connection stands is lost
                await http.post("/reset_prefix_cache")
                await ask(double, 0)
                await asyncio.sleep(0.05)
        before = status(ingest).resyncs
        double.faults.lose_events = 1
        await ask(double, 1)
        await ask(double, 2)
        await until(lambda: status(ingest).resyncs == before + 1 and ingest.names(double.url) != set(), 5)
        await until(lambda: ingest.names(double.url) < double.engine.pool.cached(), 5)
        assert await depth(index, double, 0) == 0
        assert await depth(index, double, 2) == truth(double, 2)


async def test_a_cleared_cache_is_cleared() -> None:
    async with followed() as (double, index, ingest):
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        async with httpx.AsyncClient(base_url=double.url, trust_env=False) as http:
            (await http.post("/reset_prefix_cache")).raise_for_status()
        await equal(ingest, index, double, 1)
        assert await depth(index, double, 0) == 0


async def test_a_new_incarnation_starts_from_nothing() -> None:
    async with followed() as (double, index, ingest):
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        await double.revive()
        await until(lambda: not ingest.names(double.url), 2)
        assert await depth(index, double, 0) == 0
        await ask(double, 1)
        await equal(ingest, index, double, 2)
        assert status(ingest).restarts == 1


async def test_being_told_that_an_engine_ended_is_enough() -> None:
    async with followed() as (double, index, ingest):
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        await double.die()
        ingest.restarted(double.url)
        await until(lambda: not ingest.names(double.url), 2)
        assert await depth(index, double, 0) == 0


async def test_being_told_late_that_an_engine_ended_loses_nothing() -> None:
    """It is restarted, publishes and is followed again before the health check tells: nothing more comes by itself."""
    async with followed() as (double, index, ingest):
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        await double.revive()
        await ask(double, 1)
        await equal(ingest, index, double, 2)
        ingest.restarted(double.url)
        await until(lambda: status(ingest).restarts >= 2, 2)
        await equal(ingest, index, double, 2)


async def test_another_block_size_is_named_with_its_mend() -> None:
    async with followed(block_size=32) as (double, _, ingest):
        await ask(double, 0)
        await until(lambda: status(ingest).state is State.WRONG, 5)
        assert "block_size 32" in status(ingest).why
        assert "--block-size" in status(ingest).why
        assert ingest.approximate(double.url)


async def test_an_engine_without_events_is_named_with_its_mend() -> None:
    async with followed(events=False) as (double, _, ingest):
        assert status(ingest).state is State.OFF
        assert "--kv-events-config" in status(ingest).why
        assert ingest.approximate(double.url)


async def test_an_engine_that_publishes_elsewhere_is_called_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Double("both", "e", events=True) as double:
        index = MemoryIndex()
        ingest = Ingest(index, Always(), "m", 16)
        async with httpx.AsyncClient(base_url=double.url, trust_env=False) as http:
            found = await sources(double.url, http)
        await ingest.add(double.url, [found[0]._replace(endpoint="tcp://127.0.0.1:1", replay_endpoint="")])
        assert not ingest.approximate(double.url) or status(ingest).state is not State.SILENT
        monkeypatch.setattr("gateway.index.events.follower.SILENT_S", 0.0)
        ingest.served(double.url, 1000)
        await until(lambda: status(ingest).state is State.SILENT, 2)
        assert "tcp://127.0.0.1:1" in status(ingest).why
        await ingest.close()


async def test_an_answer_that_its_events_overtook_does_not_make_an_engine_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with followed() as (double, index, ingest):
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        monkeypatch.setattr("gateway.index.events.follower.SILENT_S", 0.0)
        monkeypatch.setattr("gateway.index.events.follower.LATELY_S", 60.0)
        ingest.served(double.url, 1000)
        assert status(ingest).state is State.FOLLOWING and not ingest.approximate(double.url)
        monkeypatch.setattr("gateway.index.events.follower.LATELY_S", 0.0)
        ingest.served(double.url, 1000)
        assert status(ingest).state is State.SILENT


# With a server between several gateways.


@pytest.fixture
def running() -> Iterator[Embedded]:
    with Embedded() as server:
        yield server


async def gateway(running: Embedded, name: str, double: Double) -> tuple[RedisIndex, Ingest]:
    index = await RedisIndex.connect(running.url, "m:16", gateway=name, budget_s=1.0)
    ingest = Ingest(index, index, "m", 16)
    await follow(ingest, double)
    return index, ingest


async def test_one_gateway_ingests_and_the_other_takes_over(running: Embedded) -> None:
    async with Double("both", "e", events=True, **FEW) as double:
        one, first = await gateway(running, "one", double)
        await until(lambda: status(first).state is State.FOLLOWING, 5)
        two, second = await gateway(running, "two", double)
        await until(lambda: status(second).state is State.STANDBY, 5)
        three, third = await gateway(running, "three", double)
        for number in range(6):
            await ask(double, number)
        await equal(first, two, double, 6)
        await equal(second, two, double, 6)
        assert status(third).state is State.WAITING
        written = running.client().info("commandstats")["cmdstat_fcall"]["calls"]
        assert written > 0
        for task in first._followers[double.url][0]._tasks:  # killed: it gives nothing back
            task.cancel()
        first._sweeper.cancel()
        one._links.close()
        for number in range(6, 9):
            await ask(double, number)
        await until(lambda: status(second).state is State.FOLLOWING, 5)
        await equal(second, three, double, 9)
        await until(lambda: status(third).state is State.STANDBY, 5)
        await second.close()
        await third.close()
        for index in (one, two, three):
            await index.close()


async def test_an_emptied_server_is_filled_again(running: Embedded) -> None:
    async with Double("both", "e", events=True, **FEW) as double:
        index, ingest = await gateway(running, "one", double)
        for number in range(8):
            await ask(double, number)
        await equal(ingest, index, double, 8)
        running.client().flushall()
        await equal(ingest, index, double, 8)
        await ingest.close()
        await index.close()


async def test_a_server_that_dies_and_comes_back_is_filled_again(running: Embedded) -> None:
    async with Double("both", "e", events=True, **FEW) as double:
        index, ingest = await gateway(running, "one", double)
        await ask(double, 0)
        await equal(ingest, index, double, 1)
        running.kill()
        for number in range(1, 6):
            await ask(double, number)
        running.start()
        async with asyncio.timeout(10):
            while True:
                try:
                    await equal(ingest, index, double, 6, 10)
                    break
                except Exception as error:
                    if isinstance(error, TimeoutError):
                        raise
                    await asyncio.sleep(0.05)
        await ingest.close()
        await index.close()
