"""A client that leaves frees both engines at once, and every booking, at whatever moment it leaves."""

import asyncio
import json
from typing import Any

import pytest

from engines.double import Double
from tests.gateway.conftest import Gateway, Pair, make_pair, until

BODY: dict[str, Any] = {"model": "m", "prompt": "a long story " * 60, "max_tokens": 1500}


async def leave(pair: Pair, body: dict[str, Any], when: Any) -> None:
    """Send a request on a bare socket, wait for `when(reader)`, close the socket."""
    port = int(pair.gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw)
    async with asyncio.timeout(10):
        await when(reader)
    writer.close()
    await writer.wait_closed()


async def all_free(pair: Pair) -> None:
    """Both engines' running counts and the gateway's bookings are back to zero within a second."""
    async with asyncio.timeout(1):
        await pair.prefill.idle()
        await pair.decode.idle()
    await until(lambda: pair.gateway.booked() == 0)
    assert all(engine.pool.busy == 0 for engine in pair.gateway.app.fleet)


@pytest.mark.parametrize("stream", [True, False])
async def test_during_the_prefill(stream: bool) -> None:
    async with make_pair() as pair:
        pair.prefill.timing.prefill_a_s = 30.0

        async def prefilling(reader: asyncio.StreamReader) -> None:
            await pair.prefill.busy()

        await leave(pair, {**BODY, "stream": stream}, prefilling)
        await all_free(pair)
        assert pair.prefill.stats.finished["abort"] == 1
        assert pair.decode.stats.received == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_between_the_legs_while_the_kv_is_fetched(stream: bool) -> None:
    async with make_pair() as pair:
        pair.decode.timing.transfer_latency_s = 30.0

        async def fetching(reader: asyncio.StreamReader) -> None:
            await pair.decode.busy()

        await leave(pair, {**BODY, "stream": stream}, fetching)
        await all_free(pair)


@pytest.mark.parametrize("stream", [True, False])
async def test_before_the_first_byte(stream: bool) -> None:
    async with make_pair() as pair:
        pair.decode.timing.decode_a_s = 30.0

        async def decoding(reader: asyncio.StreamReader) -> None:
            await pair.decode.until(lambda stats: stats.running == 1)

        await leave(pair, {**BODY, "stream": stream}, decoding)
        await all_free(pair)


async def test_in_the_middle_of_the_stream() -> None:
    async with make_pair() as pair:
        pair.decode.timing.decode_a_s = 0.02

        async def third_event(reader: asyncio.StreamReader) -> None:
            for _ in range(3):
                await reader.readuntil(b"\n\n")

        await leave(pair, {**BODY, "stream": True}, third_event)
        await all_free(pair)
        assert pair.gateway.metric("baton_requests_total", route="completions", model="m", outcome="cancelled") == 1


async def test_while_sending_the_body(pair: Pair) -> None:
    port = int(pair.gateway.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b'POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 99\r\n\r\n{"model"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    labels = {"route": "completions", "model": "unknown", "outcome": "cancelled"}
    await until(lambda: pair.gateway.metric("baton_requests_total", **labels) == 1)
    assert not pair.prefill.posts


async def test_kv_that_nobody_comes_for_takes_room_until_its_lease_ends() -> None:
    async with Double("prefill", "p0", lease_s=3.0) as p, Double("decode", "d0") as d0:
        async with Gateway.over(p, d0, lease_margin_s=2.0) as gateway:
            await gateway.enrolled()
            engine = gateway.app.fleet.engines["p0"]
            room = engine.kv_room
            assert room > 0
            d0.faults.set(hang="answer", hang_next=1)  # it never looks at what it got
            answer = await gateway.http.post("/v1/completions", json={**BODY, "max_tokens": 4, "stream": True})
            assert answer.text.endswith("[DONE]\n\n")
            assert p.engine.leases
            assert engine.kv_room <= room - len(BODY["prompt"]) // 4
            await until(lambda: engine.kv_room == room, 5)
