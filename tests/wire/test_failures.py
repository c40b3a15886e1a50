"""Everything that can go wrong, and how far the exchange had come by then."""

import asyncio
import errno
import socket
from typing import Any

import pytest

from gateway.wire import ClosedEarly, ConnectFailed, TimedOut
from tests.wire.peer import HEADERS, OK, Side, answering, get, once, silent, until

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def unused_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


async def test_refused(connect: Any) -> None:
    pool = connect(f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(ConnectFailed) as failure:
        await get(pool)
    assert (failure.value.stage, failure.value.answered, pool.busy, pool.opened) == ("connect", False, 0, 0)


async def test_connect_timeout_and_a_deadline_that_comes_before_it(connect: Any) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):  # the accept queue is full: no further connection is answered
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ConnectFailed, match=r"within 0\.1 s") as refused:
            await get(connect(url, connect_s=0.1))
        assert refused.value.stage == "connect"
        with pytest.raises(TimedOut) as late:
            await connect(url).request("GET", b"/", HEADERS, first_byte_s=0.1)
        assert (late.value.stage, late.value.answered) == ("connect", False)
        assert loop.time() - began < 2


@pytest.mark.parametrize(("begun", "stage", "answered"), [(b"", "first_byte", False), (b"HTTP/1.1 2", "head", True)])
async def test_the_head_has_a_deadline(serve: Any, connect: Any, begun: bytes, stage: str, answered: bool) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(begun)
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimedOut) as failure:
        await pool.request("GET", b"/", HEADERS, first_byte_s=0.1)
    assert 0.09 < asyncio.get_running_loop().time() - began < 2
    assert (failure.value.stage, failure.value.answered, pool.busy) == (stage, answered, 0)
    await asyncio.wait_for(peer.emptied(), 5)


async def test_a_request_that_is_not_taken_times_out_at_send(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        side.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    peer = await serve(script)
    with pytest.raises(TimedOut) as failure:
        await connect(peer.url).request("POST", b"/", HEADERS, b"x" * 30_000_000, first_byte_s=0.2)
    assert (failure.value.stage, failure.value.answered) == ("send", False)


async def test_silence_in_the_body_has_a_deadline_and_bytes_move_it(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(CHUNKED)
        for _ in range(6):
            await asyncio.sleep(0.05)  # the pace of the stream, not a wait for something
            await side.send(b"1\r\nx\r\n")
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    got = b""
    with pytest.raises(TimedOut) as failure:
        while True:
            got += await answer.chunk(0.2)
    assert got == b"xxxxxx"
    assert (failure.value.stage, failure.value.answered, pool.busy) == ("body", True, 0)
    await asyncio.wait_for(peer.emptied(), 5)


async def test_framing_alone_does_not_move_the_idle_deadline(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(CHUNKED + b"5;ext=")
        while not side.reader.at_eof():
            await asyncio.sleep(0.02)
            await side.send(b"x")

    peer = await serve(script)
    answer = await connect(peer.url).request("GET", b"/", HEADERS, first_byte_s=5)
    with pytest.raises(TimedOut):
        await asyncio.wait_for(answer.chunk(0.1), 3)


@pytest.mark.parametrize(
    ("sent", "stage", "answered"),
    [
        (b"", "first_byte", False),
        (b"H", "head", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", "head", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "head", True),
    ],
)
async def test_closed_before_the_head_is_complete(
    serve: Any, connect: Any, sent: bytes, stage: str, answered: bool
) -> None:
    peer = await serve(once(sent))
    pool = connect(peer.url)
    with pytest.raises(ClosedEarly) as failure:
        await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    assert (failure.value.stage, failure.value.answered) == (stage, answered)
    assert len(peer.sides) == 1  # a fresh connection is not tried again
    assert pool.busy == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"5\r\nabc",
        CHUNKED + b"3\r\nabc\r\n0\r\n",
        CHUNKED + b"3\r\nabc\r\n0\r\nx: y\r\n",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_closed_in_the_body_gives_what_came_and_then_raises(
    serve: Any, connect: Any, sent: bytes, reset: bool
) -> None:
    taken = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(sent)
        await taken.wait()
        if reset:
            side.reset()

    peer = await serve(script)
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    got = b""
    while len(got) < 3:
        got += await answer.chunk(5)
    taken.set()
    with pytest.raises(ClosedEarly) as failure:
        await answer.chunk(5)
    assert got == b"abc"
    assert (failure.value.stage, failure.value.answered, pool.busy, pool.idle) == ("body", True, 0, 0)


async def test_a_head_that_came_with_the_end_is_still_an_answer(serve: Any, connect: Any) -> None:
    peer = await serve(silent)
    pool = connect(peer.url)
    task = asyncio.ensure_future(pool.request("GET", b"/", HEADERS, first_byte_s=5))
    await peer.accepted(1)
    await until(lambda: bool(peer.sides[0].requests))
    (connection,) = pool._open
    connection.data_received(b"HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nabc")
    connection.connection_lost(None)  # before the task has run
    answer = await task
    assert (answer.status, await answer.chunk(5)) == (500, b"abc")
    with pytest.raises(ClosedEarly):
        await answer.chunk(5)


async def test_a_kept_connection_closed_while_idle_is_not_used(serve: Any, connect: Any) -> None:
    peer = await serve(once(OK))
    pool = connect(peer.url)
    for count in (1, 2, 3):
        assert await get(pool) == (200, b"ok")
        await asyncio.wait_for(peer.sides[-1].gone.wait(), 5)
        assert len(peer.sides) == count


async def _stale(side: Side, second: bytes = b"") -> None:
    """Answers the first request of a connection, and closes on the second after writing `second`."""
    await side.request()
    await side.send(OK)
    if await side.request() is not None:
        await side.send(second)


async def test_a_stale_connection_is_replaced_once_and_the_request_sent_again(serve: Any, connect: Any) -> None:
    peer = await serve(_stale)
    pool = connect(peer.url)
    assert await get(pool) == (200, b"ok")
    assert await get(pool, method="POST", body=b"the same") == (200, b"ok")
    assert [len(side.requests) for side in peer.sides] == [2, 1]
    assert peer.sides[0].requests[1] == peer.sides[1].requests[0]
    assert (pool.busy, pool.idle, pool.opened) == (0, 1, 2)


async def test_a_replaced_connection_that_closes_too_is_the_end_of_it(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        if side.number == 0:
            await _stale(side)
        else:
            await side.request()

    peer = await serve(script)
    pool = connect(peer.url)
    assert await get(pool) == (200, b"ok")
    with pytest.raises(ClosedEarly) as failure:
        await get(pool)
    assert (failure.value.stage, failure.value.answered) == ("first_byte", False)
    assert len(peer.sides) == 2
    assert pool.busy == 0


async def test_a_stale_connection_that_answered_a_byte_is_not_replaced(serve: Any, connect: Any) -> None:
    peer = await serve(lambda side: _stale(side, b"H"))
    pool = connect(peer.url)
    assert await get(pool) == (200, b"ok")
    with pytest.raises(ClosedEarly) as failure:
        await get(pool)
    assert failure.value.answered
    assert len(peer.sides) == 1


async def test_a_stale_connection_whose_engine_is_gone_does_not_claim_that_nothing_was_sent(
    serve: Any, connect: Any
) -> None:
    stopped = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(OK)
        await side.request()
        await stopped.wait()

    peer = await serve(script)
    pool = connect(peer.url)
    assert await get(pool) == (200, b"ok")
    request = asyncio.ensure_future(get(pool))
    peer._server.close()
    stopped.set()
    with pytest.raises(ClosedEarly) as failure:
        await request
    assert not failure.value.answered
    assert f"Errno {errno.ECONNREFUSED}" in str(failure.value)
    assert pool.busy == 0


async def test_closing_the_pool_ends_everything(serve: Any, connect: Any) -> None:
    peer = await serve(silent)
    pool = connect(peer.url, connections=1)
    first = asyncio.ensure_future(get(pool))
    await peer.accepted(1)
    waiting = asyncio.ensure_future(get(pool))
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(ClosedEarly):
        await first
    with pytest.raises(ConnectFailed, match="closed"):
        await waiting
    with pytest.raises(ConnectFailed, match="closed"):
        await get(pool)
    await asyncio.wait_for(peer.emptied(), 5)


@pytest.mark.parametrize("by_us", [False, True])
async def test_a_connection_closed_while_it_opens_has_sent_nothing(serve: Any, connect: Any, by_us: bool) -> None:
    peer = await serve(silent)
    pool = connect(peer.url)

    class Closing:
        url, host = peer.url, b"e"

        async def connect(self, protocol: Any) -> None:
            await endpoint.connect(protocol)
            if by_us:
                pool.close()
            else:
                protocol.abort()

    endpoint, pool._endpoint = pool._endpoint, Closing()
    with pytest.raises(ConnectFailed, match="closed"):
        await get(pool)
    assert (pool.busy, pool.opened) == (0, 0)
    await asyncio.wait_for(peer.emptied(), 5)
    assert not any(side.requests for side in peer.sides)


async def test_closing_the_pool_ends_the_opening_of_a_connection(connect: Any) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        pool = connect(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        request = asyncio.ensure_future(get(pool))
        await asyncio.sleep(0)
        pool.close()
        with pytest.raises(ConnectFailed, match="closed"):
            await asyncio.wait_for(request, 1)


async def test_one_answer_has_one_reader_and_closing_wakes_it(serve: Any, connect: Any) -> None:
    peer = await serve(answering(CHUNKED))
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    reader = asyncio.ensure_future(answer.chunk(5))
    await asyncio.sleep(0)
    answer.close()
    with pytest.raises(ClosedEarly, match="was closed"):
        await reader
    assert pool.busy == 0
