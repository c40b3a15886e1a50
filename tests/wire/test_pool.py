"""Slots: never more than allowed, never one lost, and whoever waits longest is next."""

import asyncio
import contextlib
import gc
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import Limits, Pool, WireError
from gateway.wire.connection import Connection
from gateway.wire.incoming import Incoming
from tests.wire.peer import HEADERS, OK, Peer, Side, answering, closed, get, until

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_a_request_above_the_bound_waits_its_turn(serve: Any, connect: Any) -> None:
    order: list[bytes] = []
    go = asyncio.Semaphore(0)

    async def script(side: Side) -> None:
        while (request := await side.request()) is not None:
            order.append(request[0].split()[1])
            await go.acquire()
            await side.send(OK)

    peer = await serve(script)
    pool = connect(peer.url, connections=2)
    tasks = []
    for n in range(8):
        tasks.append(asyncio.ensure_future(get(pool, b"/%d" % n)))
        await asyncio.sleep(0)
    await until(lambda: len(order) == 2)
    assert (pool.busy, len(pool._waiting)) == (2, 6)
    for n in range(8):
        go.release()
        await until(lambda n=n: len(order) == min(n + 3, 8))  # type: ignore[misc]
        assert pool.busy <= 2
    await asyncio.gather(*tasks)
    assert sorted(order[:2]) == [b"/0", b"/1"]
    assert order[2:] == [b"/%d" % n for n in range(2, 8)]
    assert (len(peer.sides), pool.opened, pool.busy, pool.idle) == (2, 2, 0, 2)


async def test_a_newcomer_does_not_overtake(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url, connections=1)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    first = asyncio.ensure_future(get(pool, b"/first"))
    await asyncio.sleep(0)
    answer.close()
    second = asyncio.ensure_future(get(pool, b"/second"))
    await asyncio.gather(first, second)
    assert [head.split()[1] for head, _ in peer.sides[0].requests] == [b"/", b"/first", b"/second"]


async def test_a_slot_whose_connection_broke_goes_to_the_next_in_line(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(OK if side.number else b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")

    peer = await serve(script)
    pool = connect(peer.url, connections=1)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    waiting = [asyncio.ensure_future(get(pool)) for _ in range(3)]
    await asyncio.sleep(0)
    answer.close()
    assert await asyncio.gather(*waiting) == [(200, b"ok")] * 3
    assert pool.busy == 0


async def test_idle_connections_expire_by_one_timer(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url, idle_s=0.15)
    await asyncio.gather(*(get(pool) for _ in range(5)))
    assert pool.idle == 5
    handle = pool._expiry
    await get(pool)
    assert pool._expiry is handle
    await asyncio.wait_for(peer.emptied(), 5)
    assert (pool.idle, pool._expiry) == (0, None)
    assert await get(pool) == (200, b"ok")


async def test_the_one_used_last_is_used_next_and_surplus_is_closed(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url, idle_connections=2)
    answers = [await pool.request("GET", b"/", HEADERS, first_byte_s=5) for _ in range(4)]
    for answer in answers:
        answer.close()
    assert pool.idle == 2
    await asyncio.wait_for(peer.emptied(2), 5)
    assert [side.gone.is_set() for side in peer.sides] == [True, True, False, False]
    await get(pool)
    assert [len(side.requests) for side in peer.sides] == [1, 1, 1, 2]


async def test_ten_thousand_requests_leave_nothing_behind(serve: Any, connect: Any) -> None:
    class Engine(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(OK)  # type: ignore[attr-defined]

    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    pool = connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for _ in range(500):
        await get(pool)
    gc.collect()
    before = len(gc.get_objects())
    gc.disable()  # what is left is left by us, not by a late collection
    try:
        for _ in range(9_500):
            await get(pool)
        assert len(gc.get_objects()) - before < 100
    finally:
        gc.enable()
    assert (pool.opened, pool.idle, pool.busy) == (1, 1, 0)
    server.close()


async def test_closed_connections_are_freed_without_the_collector(serve: Any, connect: Any) -> None:
    peer = await serve(answering(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"))
    pool = connect(peer.url)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            assert await get(pool) == (200, b"ok")
        await asyncio.wait_for(peer.emptied(), 5)
        await until(lambda: not pool._open)
        await asyncio.sleep(0)
        assert (
            sum(isinstance(thing, Connection | Incoming) for thing in gc.get_objects()) <= 2
        )  # the loop may hold the last
    finally:
        gc.enable()


async def test_connections_that_failed_are_collected(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(CHUNKED + b"1\r\n")

    peer = await serve(script)
    pool = connect(peer.url)
    for _ in range(20):
        with pytest.raises(WireError):
            await get(pool)
    await asyncio.wait_for(peer.emptied(), 5)
    await until(lambda: not pool._open)
    gc.collect()
    assert [thing for thing in gc.get_objects() if isinstance(thing, Connection | Incoming)] == []


_BEHAVIOURS: dict[bytes, list[bytes | None]] = {
    b"/ok": [OK],
    b"/close": [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", None],
    b"/stream": [CHUNKED, b"1\r\na\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"],
    b"/die": [None],
    b"/die-in-head": [b"HTTP/1.1 200", None],
    b"/die-in-body": [CHUNKED, b"5\r\nab", None],
    b"/nonsense": [b"nonsense\r\n\r\n"],
    b"/garbage": [OK + b"garbage"],
    b"/hang": [CHUNKED, b"1\r\na\r\n", b"hang"],
}


async def _behave(side: Side) -> None:
    while (request := await side.request()) is not None:
        for step in _BEHAVIOURS[request[0].split()[1]]:
            if step is None:
                return
            if step == b"hang":
                await side.eof()
                return
            await side.send(step)
            await asyncio.sleep(0)


@settings(max_examples=25, deadline=None)
@given(
    plan=st.lists(st.tuples(st.sampled_from(sorted(_BEHAVIOURS)), st.integers(0, 25)), max_size=25),
    connections=st.integers(1, 4),
    kept=st.integers(0, 4),
    seed=st.integers(0, 1 << 16),
)
async def test_slots_are_conserved_whatever_happens(
    plan: list[tuple[bytes, int]], connections: int, kept: int, seed: int
) -> None:
    """Requests against an engine that does anything, each cancelled after some turns of the loop, or not."""
    dice = random.Random(seed)
    peer = Peer(_behave)
    await peer.start()
    pool = Pool(peer.url, limits=Limits(connections=connections, idle_connections=kept))

    async def one(target: bytes) -> None:
        answer = await pool.request("POST", target, HEADERS, b"{}", first_byte_s=5)
        try:
            while await answer.chunk(0.05):
                assert pool.busy <= connections
                if dice.random() < 0.2:
                    return
        finally:
            answer.close()

    async def cancelled(target: bytes, turns: int) -> None:
        task = asyncio.ensure_future(one(target))
        for _ in range(turns):
            await asyncio.sleep(0)
            assert pool.busy <= connections
        if dice.random() < 0.6:
            task.cancel()
        with contextlib.suppress(WireError, asyncio.CancelledError):
            await task

    try:
        await asyncio.wait_for(asyncio.gather(*(cancelled(*step) for step in plan)), 10)
        assert (pool.busy, len(pool._waiting)) == (0, 0)
        assert pool.idle <= min(kept, connections)
        await until(lambda: len(pool._open) == pool.idle)
        await asyncio.wait_for(peer.emptied(pool.idle), 5)
        assert await get(pool, b"/ok") == (200, b"ok")
        pool.close()
        await closed(pool)
        await asyncio.wait_for(peer.emptied(), 5)
    finally:
        pool.close()
        await peer.stop()
