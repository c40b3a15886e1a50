"""A body that is handed on as it arrives: every byte, in order, with pauses, and every way in which it can end."""

import asyncio
import hashlib
import random
from functools import partial
from typing import Any

import pytest

from gateway.wire import BadAnswer, ClosedEarly, TimedOut
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


def events(count: int, pick: random.Random) -> list[bytes]:
    """Events in a chunk each, written plainly mostly; sizes around those at which the size has a digit more."""
    made = []
    for number in range(count):
        size = pick.choice((3, 15, 16, 17, 200, 255, 256, 257, 4095, 4096, 4097, 70_000))
        event = pick.choice((b"x" * size, b"%d\r\n\n\r\n" % number + b"y" * size))[: size - 2]
        event += pick.choice((b"\n\n", b"\n\n", b"\n\n", b"z\n", b"\r\n"))
        plain = b"%x" % len(event)
        line = pick.choice((plain, plain, plain, plain, plain.upper(), b"0" + plain, plain + b";a=b"))
        made.append(b"%b\r\n%b\r\n" % (line, event))
    return made


class Taker:
    """Takes pieces and wants a pause after each `every`-th."""

    def __init__(self, every: int = 0) -> None:
        self.pieces: list[bytes] = []
        self._every = every

    def __call__(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        return not self._every or len(self.pieces) % self._every != 0

    def has(self, size: int) -> bool:
        """Whether so many bytes have come."""
        return sum(map(len, self.pieces)) == size


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


@pytest.mark.parametrize("seed", range(6))
async def test_events_that_arrive_alone_are_the_same(serve: Any, connect: Any, seed: int) -> None:
    pick = random.Random(seed)
    made = events(300, pick)
    body = b"".join(chunk.partition(b"\r\n")[2][:-2] for chunk in made)
    taker = Taker(pick.choice((0, 7)))

    async def script(side: Side) -> None:
        for _ in range(2):
            await side.request()
            await side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            taker.pieces.clear()
            sent = 0
            for chunk in made:
                cut = pick.choice((0, 0, 0, 1, len(chunk) - 1, len(chunk) - 2, len(chunk) // 2))
                for part in (chunk[:cut], chunk[cut:]):
                    await side.send(part)
                sent += len(chunk.partition(b"\r\n")[2]) - 2
                if pick.random() < 0.5:
                    await until(partial(taker.has, sent))
            await side.send(b"0\r\n\r\n")

    peer = await serve(script)
    pool = connect(peer.url)
    for _ in range(2):
        answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
        while await answer.pour(taker, 5):
            await asyncio.sleep(0)
        assert b"".join(taker.pieces) == body
    assert pool.opened == 1


_SIZES = [14, 15, 16, 17, 254, 255, 256, 4095, 4096, 65_535, 65_536]
_WRONG = [(200, form) for form in (b"+%x", b"0x%x", b"-%x", b"%x ", b"%x\n")]


@pytest.mark.parametrize(
    ("size", "line"),
    [
        *((size, b"%x" % (size + wrong)) for size in _SIZES for wrong in (-1, 1)),
        *((size, form % size) for size, form in _WRONG),
    ],
)
async def test_a_wrong_size_is_seen_behind_events_that_came_alone(
    serve: Any, connect: Any, size: int, line: bytes
) -> None:
    event = b"e" * (size - 2) + b"\n\n"
    taker = Taker()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for count in range(1, 6):
            await side.send(b"%x\r\n%b\r\n" % (size, event))
            await until(partial(taker.has, count * size))
        await side.send(b"%b\r\n%b\r\n" % (line, event))
        await side.eof()

    answer = await connect((await serve(script)).url).request("GET", b"/", HEADERS, first_byte_s=5)
    with pytest.raises((BadAnswer, ClosedEarly)):
        await answer.pour(taker, 5)


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
