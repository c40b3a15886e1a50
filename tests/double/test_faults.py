import asyncio
import contextlib
import gc
import socket
from typing import Any

import httpx
import pytest

from engines.double import Double, Faults, Timing
from engines.double.engine import EngineDeadError
from engines.double.faults import FaultError
from tests.double.conftest import PREFILL, Client, chat


async def order(client: Client, double: Double, **orders: Any) -> dict[str, Any]:
    response = await client.post(double, orders, "/double/control")
    assert response.status_code == 200, response.text
    state: dict[str, Any] = response.json()
    return state


async def test_the_next_requests_fail_and_then_no_more(client: Client, both: Double) -> None:
    both.faults.set(error_next=2, error_status=503)
    assert [(await client.post(both, chat())).status_code for _ in range(3)] == [503, 503, 200]
    assert both.stats.received == 1


async def test_a_share_of_requests_fails_the_same_way_for_a_seed(client: Client, both: Double) -> None:
    drawn = []
    for _ in range(2):
        both.faults.set(error_rate=0.5, seed=7)
        drawn.append([(await client.post(both, chat("hi", 1))).status_code for _ in range(20)])
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {200, 500}


async def test_a_hanging_engine_answers_nothing(client: Client, both: Double) -> None:
    await order(client, both, faults={"hang": "answer", "hang_next": 1})
    asked = asyncio.create_task(client.post(both, chat()))
    assert (await both.request()).path == "/v1/chat/completions"
    assert await client.say(both, chat())
    assert not asked.done()
    asked.cancel()


async def test_a_hanging_engine_stops_within_an_event_or_never_ends(client: Client, both: Double) -> None:
    for hang, least in (("half", 10), ("forever", 1000)):
        both.faults.set(hang=hang)
        async with client.http.stream("POST", both.url + "/v1/chat/completions", json=chat(stream=True)) as response:
            got = b""
            async for piece in response.aiter_raw():
                got += piece
                if len(got) >= least:
                    break
        assert got.startswith(b"data: {")
        assert (b"\n\n" in got) == (hang == "forever")
        await both.idle()


async def test_a_hanging_engine_answers_headers_only(client: Client, both: Double) -> None:
    both.faults.hang = "body"
    url, timeout = both.url + "/v1/chat/completions", httpx.Timeout(0.2)
    async with client.http.stream("POST", url, json=chat(stream=True), timeout=timeout) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await response.aread()


async def test_a_stream_is_cut_after_some_chunks(client: Client, both: Double) -> None:
    both.faults.set(cut_after=3, cut_next=1)
    seen = b""
    with pytest.raises(httpx.RemoteProtocolError):
        async with client.http.stream("POST", both.url + "/v1/chat/completions", json=chat(stream=True)) as response:
            async for part in response.aiter_raw():
                seen += part
    assert seen.count(b"data: ") == 3
    await both.idle()
    assert both.stats.usage == 0
    assert (await client.events(both, chat()))[-1] == "data: [DONE]"


async def test_a_dead_engine_drops_its_streams_and_refuses(client: Client, both: Double) -> None:
    both.timing.decode_a_s = 0.02
    engine_id, url = both.engine_id, both.url
    with pytest.raises(httpx.TransportError):
        async with client.http.stream("POST", url + "/v1/chat/completions", json=chat("hi", 500, stream=True)) as r:
            parts = r.aiter_raw()
            await anext(parts)
            await both.die()
            async for _ in parts:
                pass
    with pytest.raises(httpx.ConnectError):
        await client.http.get(url + "/health")
    await both.revive()
    assert both.url == url and both.engine_id != engine_id
    assert (await client.http.get(url + "/health")).status_code == 200
    assert both.stats.received == 0 and both.stats.usage == 0


async def test_death_and_revival_over_http(client: Client, both: Double) -> None:
    first = both.engine
    await order(client, both, do="revive")
    with pytest.raises(EngineDeadError):
        await first.until(lambda stats: stats.received < 0)
    while both.engine is first:
        await asyncio.sleep(0)
    assert (await client.http.get(both.url + "/double/control")).json()["engine_id"] != first.id
    await order(client, both, do="die")
    await both.died()
    with pytest.raises(httpx.ConnectError):
        await client.http.get(both.url + "/health")


async def test_refusal_over_http(client: Client, both: Double) -> None:
    await order(client, both, faults={"refuse": True})
    async with httpx.AsyncClient(verify=False) as other:
        with pytest.raises(httpx.ConnectError):
            await other.get(both.url + "/health")
        await order(client, both, do="heal")
        assert (await client.http.get(both.url + "/health")).status_code == 200
        assert (await other.get(both.url + "/health")).status_code == 200


async def test_refusing_keeps_open_connections(client: Client, both: Double) -> None:
    assert (await client.http.get(both.url + "/health")).status_code == 200
    await both.refuse()
    assert (await client.http.get(both.url + "/health")).status_code == 200
    async with httpx.AsyncClient() as other:
        with pytest.raises(httpx.ConnectError):
            await other.get(both.url + "/health")
        await both.refuse(False)
        assert (await other.get(both.url + "/health")).status_code == 200


async def test_a_prefill_answer_without_or_with_half_its_params(client: Client, p: Double) -> None:
    body = chat(max_tokens=1, kv_transfer_params=PREFILL)
    p.faults.drop_params = True
    assert (await client.post(p, body)).json()["kv_transfer_params"] is None
    p.faults.heal()
    await order(client, p, faults={"omit_params": ["remote_host"]})
    params = (await client.post(p, body)).json()["kv_transfer_params"]
    assert "remote_host" not in params and "remote_port" in params


async def test_health_may_differ_from_service(client: Client, both: Double) -> None:
    both.faults.health_status = 503
    assert (await client.http.get(both.url + "/health")).status_code == 503
    assert await client.say(both, chat())


async def test_timing_and_lease_over_http(client: Client, both: Double) -> None:
    state = await order(client, both, timing={"decode_a_s": 0.5}, lease_s=5, faults={"slow": 2})
    assert both.timing.decode_a_s == 0.5 and both.engine.leases.seconds == 5 and both.faults.slow == 2.0
    assert state["timing"]["decode_a_s"] == 0.5 and state["faults"]["slow"] == 2.0
    assert (await order(client, both, do="heal"))["faults"]["slow"] == 1.0


@pytest.mark.parametrize(
    "orders",
    [
        {"faults": {"nope": 1}},
        {"faults": {"hang": "x"}},
        {"faults": {"error_next": "many"}},
        {"timing": {"x": 1}},
        {"do": "dance"},
        {"what": 1},
    ],
)
async def test_a_wrong_order_changes_nothing(client: Client, both: Double, orders: dict[str, Any]) -> None:
    response = await client.post(both, {"faults": {"health_status": 418}} | orders, "/double/control")
    assert response.status_code == 400
    assert both.faults == Faults() and both.timing == Timing()


def test_a_wrong_fault_leaves_the_right_ones_alone() -> None:
    faults = Faults()
    with pytest.raises(FaultError, match="unknown fault 'nope'"):
        faults.set(error_next=3, nope=1)
    assert faults.error_next == 0


async def test_control_requests_are_not_recorded(client: Client, both: Double) -> None:
    await order(client, both)
    assert not both.requests


@pytest.mark.parametrize("steps", range(6))
async def test_a_connection_that_was_just_accepted_dies_too(steps: int) -> None:
    async with Double("both", "e") as double:
        with socket.create_connection(("127.0.0.1", double.server.port)) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: e\r\ncontent-length: 2\r\n\r\n{}")
            for _ in range(steps):
                await asyncio.sleep(0)
            await double.die()
            client.settimeout(5)
            with contextlib.suppress(ConnectionError):
                while await asyncio.to_thread(client.recv, 65_536):
                    pass


@pytest.mark.parametrize("steps", range(6))
async def test_a_reader_that_was_just_accepted_is_let_go_too(steps: int) -> None:
    async with Double("both", "e") as double:
        channel = double.engine.channel
        with socket.create_connection(("127.0.0.1", channel.port)) as client:
            for _ in range(steps):
                await asyncio.sleep(0)
            await channel.close()
            client.settimeout(5)
            with contextlib.suppress(ConnectionError):
                assert not await asyncio.to_thread(client.recv, 1)
    gc.collect()  # what was lost without being closed says so
