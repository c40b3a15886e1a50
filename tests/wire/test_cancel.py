"""Whoever is cancelled, at any point, closes the socket and leaves no slot behind."""

import asyncio
import socket
from typing import Any

import pytest

from gateway.wire import Answer, TimedOut
from tests.wire.peer import HEADERS, OK, Side, answering, get, silent

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_while_waiting_for_a_connection(serve: Any, connect: Any) -> None:
    peer = await serve(silent)
    pool = connect(peer.url, connections=1)
    holder = asyncio.ensure_future(get(pool))
    await peer.accepted(1)
    waiting = [asyncio.ensure_future(get(pool)) for _ in range(3)]
    await asyncio.sleep(0)
    assert "waiting 3" in repr(pool)
    await cancel(waiting[1])
    assert "waiting 2" in repr(pool)
    assert pool.busy == 1
    for task in (holder, waiting[0], waiting[2]):
        await cancel(task)
    assert (pool.busy, pool.idle) == (0, 0)
    await asyncio.wait_for(peer.emptied(), 5)


async def test_after_a_slot_was_given_and_before_it_was_used(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url, connections=1)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    waiting = [asyncio.ensure_future(get(pool)) for _ in range(2)]
    await asyncio.sleep(0)
    answer.close()  # hands the connection to the first
    await cancel(waiting[0])  # before it has run
    assert await waiting[1] == (200, b"ok")
    assert (pool.busy, pool.idle, len(peer.sides)) == (0, 1, 1)


async def test_while_connecting(connect: Any) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        pool = connect(f"http://127.0.0.1:{deaf.getsockname()[1]}", connections=1)
        task = asyncio.ensure_future(get(pool))
        await asyncio.sleep(0.01)  # anywhere inside the handshake
        assert pool.busy == 1
        await cancel(task)
        assert pool.busy == 0


@pytest.mark.parametrize("turns", range(8))
async def test_at_every_turn_of_the_loop(serve: Any, connect: Any, turns: int) -> None:
    peer = await serve(silent)
    pool = connect(peer.url)
    task = asyncio.ensure_future(get(pool))
    for _ in range(turns):
        await asyncio.sleep(0)
    await cancel(task)
    assert (pool.busy, pool.idle) == (0, 0)
    await asyncio.wait_for(peer.emptied(), 5)


async def test_while_sending_a_large_body(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        side.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await released.wait()
        side.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await side.eof()

    released = asyncio.Event()
    peer = await serve(script)
    pool = connect(peer.url)
    task = asyncio.ensure_future(get(pool, method="POST", body=b"x" * 30_000_000))
    await peer.accepted(1)
    await cancel(task)
    released.set()
    assert pool.busy == 0
    await asyncio.wait_for(peer.emptied(), 5)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2"])
async def test_while_waiting_for_the_head(serve: Any, connect: Any, begun: bytes) -> None:
    asked = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(begun)
        asked.set()
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    task = asyncio.ensure_future(get(pool))
    await asked.wait()
    await cancel(task)
    assert (pool.busy, pool.idle) == (0, 0)
    await asyncio.wait_for(peer.emptied(), 5)


async def test_while_waiting_for_a_chunk(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(CHUNKED + b"2\r\nab\r\n")
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    answer: Answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    assert await answer.chunk(5) == b"ab"
    task = asyncio.ensure_future(answer.chunk(5))
    await asyncio.sleep(0)
    await cancel(task)
    assert (pool.busy, pool.idle) == (0, 0)
    await asyncio.wait_for(peer.emptied(), 5)


async def test_the_head_arrives_in_the_turn_of_the_cancellation(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url)
    assert await get(pool) == (200, b"ok")
    task = asyncio.ensure_future(pool.request("GET", b"/", HEADERS, first_byte_s=5))
    await asyncio.sleep(0)
    (connection,) = pool._open
    connection.data_received(OK)  # wakes the task ...
    await cancel(task)  # ... which is cancelled before it runs
    assert pool.busy == 0


async def test_the_deadline_counts_the_wait_for_a_connection(serve: Any, connect: Any) -> None:
    peer = await serve(silent)
    pool = connect(peer.url, connections=1)
    holder = asyncio.ensure_future(get(pool))
    await peer.accepted(1)
    with pytest.raises(TimedOut) as failure:
        await pool.request("GET", b"/", HEADERS, first_byte_s=0.05)
    assert (failure.value.stage, failure.value.answered) == ("connect", False)
    assert "waiting 0" in repr(pool)
    await cancel(holder)
