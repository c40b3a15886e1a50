"""A body that is handed on as it arrives: every byte, in order, with pauses, and every way in which it can end."""

import asyncio
import hashlib
import random
from typing import Any

import pytest

from gateway.wire import ClosedEarly, TimedOut
from tests.wire.peer import HEADERS, Side, until

_READ = 256 * 1024


def chunks(data: bytes, seed: int) -> list[bytes]:
    """`data` in HTTP chunks of random sizes."""
    pick = random.Random(seed)
    made, at = [], 0
    while at < len(data):
        piece = data[at : at + pick.choice((1, 2, 200, 5_000, 70_000))]
        at += len(piece)
        made.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    return [*made, b"0\r\n\r\n"]


class Taker:
    """Takes pieces and wants a pause after each `every`-th."""

    def __init__(self, every: int = 0) -> None:
        self.pieces: list[bytes] = []
        self._every = every

    def __call__(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        return not self._every or len(self.pieces) % self._every != 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("every", [0, 1, 3])
async def test_every_byte_in_order_however_it_arrives(serve: Any, connect: Any, seed: int, every: int) -> None:
    pick = random.Random(seed)
    body = pick.randbytes(400_000)
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(chunks(body, seed))

    async def script(side: Side) -> None:
        await side.request()
        at = 0
        while at < len(raw):
            size = pick.choice((1, 5, 100, 3_000, 60_000))
            await side.send(raw[at : at + size])
            at += size
            if pick.random() < 0.2:
                await asyncio.sleep(0)
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    taker = Taker(every)
    while await answer.pour(taker, 5):
        await asyncio.sleep(0)
    assert hashlib.sha256(b"".join(taker.pieces)).digest() == hashlib.sha256(body).digest()
    assert await answer.pour(taker, 5) is False
    assert pool.idle == 1


async def test_a_taker_that_pauses_holds_the_engine_back(serve: Any, connect: Any) -> None:
    stalled = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(600):
            side.writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            drained = asyncio.ensure_future(side.writer.drain())
            if not (await asyncio.wait([drained], timeout=0.25))[0]:
                stalled.set()
                await drained
        await side.send(b"0\r\n\r\n")
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url, buffer_bytes=100_000)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    taker = Taker(1)
    assert await answer.pour(taker, 5)
    await asyncio.wait_for(stalled.wait(), 10)
    assert sum(map(len, answer._connection.pieces)) <= 100_000 + _READ
    while await answer.pour(taker, 5):
        pass
    assert sum(map(len, taker.pieces)) == 600 * 65536


@pytest.mark.parametrize(("end", "error"), [("close", ClosedEarly), ("silence", TimedOut)])
async def test_what_came_before_the_end_is_handed_on(serve: Any, connect: Any, end: str, error: type) -> None:
    done = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await side.send(b"3\r\nde")
        if end == "silence":
            await done.wait()

    peer = await serve(script)
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    taker = Taker()
    with pytest.raises(error):
        await answer.pour(taker, 0.2)
    assert b"".join(taker.pieces) == b"abcde"
    done.set()
    assert pool.busy == 0


async def test_silence_counts_from_the_last_byte(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(6):
            await asyncio.sleep(0.1)
            await side.send(b"1\r\nx\r\n")
        await side.send(b"0\r\n\r\n")
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    taker = Taker()
    assert await answer.pour(taker, 0.3) is False
    assert b"".join(taker.pieces) == b"xxxxxx"


async def test_a_cancelled_pour_closes_the_socket_at_once(serve: Any, connect: Any) -> None:
    left = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await side.reader.read()
        left.set()

    peer = await serve(script)
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    taker = Taker()
    task = asyncio.ensure_future(answer.pour(taker, 5))
    await until(lambda: bool(taker.pieces))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(left.wait(), 5)
    assert pool.busy == 0
