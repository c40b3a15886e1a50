"""KV events, read as a gateway reads them: SUB for what is new, DEALER for what was missed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import msgpack
from zmq.asyncio import Context
from zmq.constants import SocketType

from engines.double import Double
from tests.double.conftest import PREFILL, TEXT, Client, chat


@asynccontextmanager
async def socket(kind: Any, endpoint: str) -> AsyncIterator[Any]:
    made = Context.instance().socket(kind)
    try:
        if kind == SocketType.SUB:
            made.subscribe(b"")
        made.connect(endpoint)
        yield made
    finally:
        made.close(linger=0)


async def sources(client: Client, double: Double) -> dict[str, Any]:
    source: dict[str, Any] = (await client.http.get(double.url + "/kv_event_sources")).json()["0"]
    return source


async def replay(client: Client, double: Double, start: int = 0) -> list[tuple[int, Any]]:
    """All kept batches from a number on."""
    batches: list[tuple[int, Any]] = []
    async with socket(SocketType.DEALER, (await sources(client, double))["replay_endpoint"]) as dealer:
        await dealer.send_multipart([b"", start.to_bytes(8, "big")])
        while True:
            empty, topic, number, payload = await dealer.recv_multipart()
            assert empty == b""
            if number == (-1).to_bytes(8, "big", signed=True):
                assert (topic, payload) == (b"", b"")
                return batches
            assert topic == b"kv-events"
            batches.append((int.from_bytes(number, "big"), msgpack.decode(payload)))


def applied(batches: list[tuple[int, Any]]) -> set[int]:
    """The hashes that a follower holds for cached after these batches."""
    held: dict[int, int] = {}
    for _, (_, events, _) in batches:
        for event in events:
            if event["type"] == "BlockStored":
                assert len(event["token_ids"]) == len(event["block_hashes"]) * event["block_size"]
                for name in event["block_hashes"]:
                    held[name] = held.get(name, 0) + 1
            elif event["type"] == "BlockRemoved":
                for name in event["block_hashes"]:
                    held[name] -= 1
            else:
                held.clear()
    return {name for name, count in held.items() if count}


async def test_replayed_events_are_what_the_pool_holds(client: Client) -> None:
    async with Double(events=True, num_blocks=40, max_model_len=512) as double:
        for at in range(12):
            await client.say(double, chat(f"{at % 5} " + TEXT, 30))
        await asyncio.gather(*(client.say(double, chat(f"{at}" + " ab" * (5 - at), 200)) for at in range(6)))
        assert double.stats.preemptions > 0
        batches = await replay(client, double)
        assert [number for number, _ in batches] == list(range(len(batches)))
        assert any(event["type"] == "BlockRemoved" for _, batch in batches for event in batch[1])
        assert applied(batches) == set(double.engine.pool.cached())
        await client.post(double, {}, "/reset_prefix_cache")
        batches = await replay(client, double)
        assert batches[-1][1][1] == [{"type": "AllBlocksCleared"}]
        assert applied(batches) == set()


async def test_the_shape_of_an_event(client: Client) -> None:
    async with Double(events=True) as double:
        body = {"model": "m", "prompt": list(range(600, 640)), "max_tokens": 1, "cache_salt": "s"}
        await client.post(double, body, "/v1/completions")
        ((number, batch),) = await replay(client, double)
        assert number == 0
        assert isinstance(batch[0], float) and batch[2] == 0
        (event,) = batch[1]
        assert list(event) == [
            "type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
            "extra_keys", "group_idx", "kv_cache_spec_kind",
        ]  # fmt: skip
        assert event["token_ids"] == list(range(600, 632))
        assert len(event["block_hashes"]) == 2 and event["parent_block_hash"] is None
        assert event["extra_keys"] == [["s"], None]
        assert (event["medium"], event["kv_cache_spec_kind"], event["group_idx"]) == ("GPU", "full_attention", 0)


async def test_generated_blocks_follow_the_prompts(client: Client) -> None:
    async with Double(events=True) as double:
        body = {"model": "m", "prompt": list(range(600, 632)), "max_tokens": 33}
        await client.post(double, body, "/v1/completions")
        batches = await replay(client, double)
        stored = [event for _, batch in batches for event in batch[1]]
        assert [len(event["block_hashes"]) for event in stored] == [2, 1, 1]
        assert stored[1]["parent_block_hash"] == stored[0]["block_hashes"][-1]
        assert stored[2]["parent_block_hash"] == stored[1]["block_hashes"][-1]


async def test_the_decode_engine_publishes_what_it_received(client: Client, p: Double) -> None:
    async with Double(events=True) as d:
        body = {"model": "m", "prompt": list(range(600, 650)), "max_tokens": 1}
        leg = await client.post(p, {**body, "kv_transfer_params": PREFILL}, "/v1/completions")
        params = leg.json()["kv_transfer_params"]
        await client.post(d, {**body, "kv_transfer_params": params}, "/v1/completions")
        ((_, batch),) = await replay(client, d)
        assert batch[1][0]["token_ids"] == list(range(600, 648))
        assert set(batch[1][0]["block_hashes"]) == set(d.engine.pool.cached()) == set(p.engine.pool.cached())


async def test_subscribers_get_batches_and_lost_ones_can_be_replayed(client: Client) -> None:
    async with Double(events=True) as double:
        async with socket(SocketType.SUB, (await sources(client, double))["endpoint"]) as subscriber:
            while not await subscriber.poll(20):
                await client.say(double, chat(f"{double.stats.received} " + TEXT, 1))
            topic, number, payload = await subscriber.recv_multipart()
            assert topic == b"kv-events" and len(number) == 8
            assert msgpack.decode(payload)[1][0]["type"] == "BlockStored"
            while await subscriber.poll(0):
                _, number, _ = await subscriber.recv_multipart()
            last = int.from_bytes(number, "big")
            double.faults.lose_events = 2
            for at in range(3):
                await client.say(double, chat(f"fresh {at} " + TEXT, 1))
            _, number, _ = await subscriber.recv_multipart()
            assert int.from_bytes(number, "big") == last + 3
            assert double.faults.lose_events == 0
        missed = await replay(client, double, last + 1)
        assert [number for number, _ in missed] == [last + 1, last + 2, last + 3]


async def test_a_revived_engine_starts_its_numbers_again(client: Client) -> None:
    async with Double(events=True) as double:
        before = await sources(client, double)
        await client.say(double, chat())
        await double.revive()
        assert await sources(client, double) == before
        assert await replay(client, double) == []
        await client.say(double, chat())
        assert (await replay(client, double))[0][0] == 0


async def test_given_ports_are_announced_with_a_star(client: Client) -> None:
    async with Double(events=True) as double:
        source = await sources(client, double)
    port, replay_port = (int(source[key].rpartition(":")[2]) for key in ("endpoint", "replay_endpoint"))
    async with Double(events_port=port, replay_port=replay_port) as double:
        source = await sources(client, double)
        assert source["endpoint"] == f"tcp://*:{port}"
        assert source["replay_endpoint"] == f"tcp://*:{replay_port}"
        assert list(source) == [
            "enable_kv_cache_events", "publisher", "endpoint", "replay_endpoint", "buffer_steps", "hwm",
            "max_queue_size", "topic",
        ]  # fmt: skip


async def test_taken_ports_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.double.events._PATIENCE_S", 0.0)
    async with Double(events=True) as double:
        port = int(double.engine.publisher.endpoint.rpartition(":")[2]) if double.engine.publisher else 0
        other = Double(events_port=port)
        with pytest.raises(OSError, match=f"cannot publish KV events on .*{port}"):
            await other.start()


@pytest.mark.parametrize("kept", [3])
async def test_only_so_many_batches_are_kept(client: Client, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.double.events.KEPT_BATCHES", kept)
    async with Double(events=True) as double:
        for at in range(6):
            await client.say(double, chat(f"{at} " + TEXT, 1))
        batches = await replay(client, double)
        assert [number for number, _ in batches] == [3, 4, 5]
