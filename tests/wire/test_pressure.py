"""Whoever is slow holds the other side back and costs a bounded buffer."""

import asyncio
import hashlib
from typing import Any

from tests.wire.peer import HEADERS, OK, Side, get, until

_BLOCK = bytes(range(256)) * 256
_READ = 256 * 1024  # the most that a transport reads at once
_SOCKETS = 12 * 1024 * 1024  # what the kernel may hold on both sides of a loopback connection


async def test_a_slow_reader_stalls_the_engine_and_gets_every_byte(serve: Any, connect: Any) -> None:
    sent = 0
    blocks = 600
    stalled = asyncio.Event()

    async def script(side: Side) -> None:
        nonlocal sent
        await side.request()
        await side.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(blocks):
            side.writer.write(b"10000\r\n" + _BLOCK + b"\r\n")
            drained = asyncio.ensure_future(side.writer.drain())
            done, _ = await asyncio.wait([drained], timeout=0.25)
            if not done:
                stalled.set()
                await drained
            sent += len(_BLOCK)
        await side.send(b"0\r\n\r\n")
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url, buffer_bytes=100_000)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    await asyncio.wait_for(stalled.wait(), 10)
    assert sent < _SOCKETS < blocks * len(_BLOCK)
    assert sum(map(len, answer._connection.pieces)) <= 100_000 + _READ
    digest, largest, total = hashlib.blake2b(), 0, 0
    while piece := await answer.chunk(5):
        digest.update(piece)
        largest = max(largest, len(piece))
        total += len(piece)
    assert largest <= 100_000 + _READ
    assert total == blocks * len(_BLOCK)
    assert digest.digest() == hashlib.blake2b(_BLOCK * blocks).digest()
    assert pool.idle == 1


async def test_a_slow_engine_gets_a_large_request_whole_and_in_slices(serve: Any, connect: Any) -> None:
    read_on = asyncio.Event()
    body = _BLOCK * 300
    got = hashlib.blake2b()

    async def script(side: Side) -> None:
        await side.reader.readuntil(b"\r\n\r\n")
        side.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await read_on.wait()
        side.writer.transport.resume_reading()  # type: ignore[attr-defined]
        left = len(body)
        while left:
            piece = await side.reader.read(min(left, 1 << 20))
            left -= len(piece)
            got.update(piece)
        await side.send(OK)
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    request = asyncio.ensure_future(get(pool, method="POST", body=body))
    await peer.accepted(1)
    (connection,) = pool._open
    await until(lambda: not connection._writing)
    assert connection._transport.get_write_buffer_size() <= 2 * _READ
    assert len(connection._unsent) > len(body) - _SOCKETS
    read_on.set()
    assert await request == (200, b"ok")
    assert got.digest() == hashlib.blake2b(body).digest()
    assert pool.idle == 1


async def test_an_answer_before_the_request_is_all_sent_is_taken_and_the_connection_is_not_kept(
    serve: Any, connect: Any
) -> None:
    async def script(side: Side) -> None:
        await side.reader.readuntil(b"\r\n\r\n")
        side.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await side.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    peer = await serve(script)
    pool = connect(peer.url)
    assert await get(pool, method="POST", body=_BLOCK * 500) == (413, b"no")
    assert (pool.idle, pool.busy) == (0, 0)
