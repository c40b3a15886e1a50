"""Our HTTP front under fire: any split of the bytes, early closes, slow readers, requests that are none."""

import asyncio
import gc
import logging
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.front.call import Call
from gateway.front.connection import Connection
from tests.front.conftest import LIMIT, digest, pieces, serving

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


async def answer(reader: Reader) -> tuple[int, dict[bytes, bytes], bytes]:
    """Read one answer with whatever framing it has."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    status = int(first.split()[1])
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        assert await reader.readline() == b"\r\n"
        return status, headers, body
    if b"content-length" in headers:
        return status, headers, await reader.readexactly(int(headers[b"content-length"]))
    return status, headers, b"" if status == 204 else await reader.read()


def request(path: bytes, body: bytes, pick: random.Random) -> bytes:
    """One request: Content-Length or chunked with an extension and a trailer, and headers at random."""
    more = b"".join(b"X-H%d: %b\r\n" % (i, b"v" * pick.choice((0, 1, 900))) for i in range(pick.randrange(12)))
    head = b"POST %b HTTP/1.1\r\nHost: g\r\n%b" % (path, more)
    if pick.random() < 0.5:
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces(body, len(body)))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-Trailer: t\r\n\r\n"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_split_of_any_pipeline_is_answered_in_order(seed: int) -> None:
    async def check() -> None:
        pick = random.Random(seed)
        bodies = [pick.randbytes(pick.choice((0, 1, 100, 5_000, 90_000))) for _ in range(pick.randrange(1, 7))]
        paths = [pick.choice((b"/echo", b"/stream?x=1")) for _ in bodies]
        raw = b"".join(request(path, body, pick) for path, body in zip(paths, bodies, strict=True))
        async with serving() as (port, _, shared):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)

            async def send() -> None:
                for piece in pieces(raw, seed):
                    writer.write(piece)
                    if pick.random() < 0.1:
                        await asyncio.sleep(0)
                await writer.drain()

            sending = asyncio.create_task(send())
            for path, body in zip(paths, bodies, strict=True):
                status, headers, got = await answer(reader)
                assert (status, headers[b"x-method"]) == (200, b"POST")
                assert got == (body if path.startswith(b"/stream") else digest(body))
            await sending
            writer.close()
        assert shared.total_requests == len(bodies)

    asyncio.run(asyncio.wait_for(check(), 30))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_client_that_leaves_anywhere_leaves_nothing(seed: int) -> None:
    async def check() -> None:
        pick = random.Random(seed)
        raw = request(pick.choice((b"/echo", b"/stream", b"/wait")), pick.randbytes(50_000), pick)
        async with serving() as (port, _, shared):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw[: pick.randrange(len(raw) + 1)])
            await writer.drain()
            if pick.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()
            while shared.connections or shared.tasks:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(check(), 30))


async def ask(raw: bytes) -> tuple[int, dict[bytes, bytes], bytes, bool]:
    """Send bytes; the first answer, and whether the connection stays open after it."""
    async with serving() as (port, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        status, headers, body = await asyncio.wait_for(answer(reader), 5)
        writer.write(b"GET /echo HTTP/1.1\r\nhost: g\r\n\r\n")
        try:
            stays = bool(await asyncio.wait_for(reader.read(1), 5))
        except ConnectionError:
            stays = False
        writer.close()
        return status, headers, body, stays


@pytest.mark.parametrize(
    ("raw", "status", "stays"),
    [
        (b"GET /echo HTTP/1.1\r\nhost: g\r\n\r\n", 200, True),
        (b"GET /echo HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n", 200, False),
        (b"GET /echo HTTP/1.0\r\n\r\n", 200, False),
        (b"GET /stream HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc", 200, False),
        (b"GET /empty HTTP/1.1\r\nhost: g\r\n\r\n", 204, True),
        (b"GET /echo HTTP/1.1\r\nhost: g\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", 200, True),
        (b"CONNECT g:443 HTTP/1.1\r\nhost: g\r\n\r\n", 405, False),
        (b"GET /echo HTTP/1.1\r\nhost: g\r\nx: " + b"y" * 700_000 + b"\r\n\r\n", 431, False),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, False),
        (b"GET / HTTP/9.9\r\n\r\n", 400, False),
        (
            b"POST /echo HTTP/1.1\r\nhost: g\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            False,
        ),
        (b"POST /echo HTTP/1.1\r\nhost: g\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400, False),
        (b"POST /echo HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400, False),
        (b"POST /echo HTTP/1.1\r\nhost : g\r\n\r\n", 400, False),
        (b"GET /raise HTTP/1.1\r\nhost: g\r\n\r\n", 500, True),
        (b"GET /inject HTTP/1.1\r\nhost: g\r\n\r\n", 500, True),
    ],
)
async def test_what_is_asked_and_what_is_none(raw: bytes, status: int, stays: bool) -> None:
    logging.disable(logging.ERROR)
    try:
        got, headers, _, stayed = await ask(raw)
    finally:
        logging.disable(logging.NOTSET)
    assert (got, stayed) == (status, stays)
    assert b"set-cookie" not in headers
    assert (b"connection" in headers) == (not stays)


async def test_head_has_no_body() -> None:
    async with serving() as (port, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in (b"/echo", b"/stream"):
            writer.write(b"HEAD %b HTTP/1.1\r\nhost: g\r\ncontent-length: 1\r\n\r\nx" % path)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
        writer.write(b"GET /echo HTTP/1.1\r\nhost: g\r\n\r\n")
        assert (await answer(reader))[0] == 200
        writer.close()


async def test_a_body_that_is_waited_for_is_asked_for() -> None:
    async with serving() as (port, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo HTTP/1.1\r\nhost: g\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await answer(reader))[2] == digest(b"abc")
        writer.close()


async def test_a_body_that_would_be_refused_is_not_asked_for() -> None:
    raw = b"POST /echo HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\nexpect: 100-continue\r\n\r\n" % (LIMIT + 1)
    status, headers, _, stays = await ask(raw)
    assert (status, headers[b"connection"], stays) == (413, b"close", False)


async def test_http_1_0_knows_no_interim_answer() -> None:
    async with serving() as (port, echo, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo HTTP/1.0\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        while not echo.calls:
            await asyncio.sleep(0.001)
        writer.write(b"abc")
        assert (await answer(reader))[::2] == (200, digest(b"abc"))
        writer.close()


@pytest.mark.parametrize("step", [1, 7, 100_000])
async def test_a_wish_to_upgrade_costs_no_body(step: int) -> None:
    """Java's client sends it with its first request, whatever that is."""
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    whole = b"POST /echo HTTP/1.1\r\nhost: g\r\n%bcontent-length: 3\r\n\r\nabc" % wish
    chunked = b"POST /stream HTTP/1.1\r\nhost: g\r\n%btransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" % wish
    raw = whole + chunked + whole
    async with serving() as (port, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(0, len(raw), step):
            writer.write(raw[at : at + step])
            await asyncio.sleep(0)
        assert [(await answer(reader))[::2] for _ in range(3)] == [
            (200, digest(b"abc")),
            (200, b"abc"),
            (200, digest(b"abc")),
        ]
        writer.close()


@pytest.mark.parametrize("begun", [b"3\r\nabc\r\n0\r\nx-trailer: ", b"3;x="])
async def test_what_is_around_a_body_is_bounded_too(begun: bytes) -> None:
    raw = b"POST /echo HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n" + begun + b"y" * 700_000
    status, _, _, stays = await ask(raw)
    assert (status, stays) == (431, False)


async def test_half_an_answer_never_looks_whole() -> None:
    logging.disable(logging.ERROR)
    try:
        async with serving() as (port, _, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /half HTTP/1.1\r\nhost: g\r\n\r\n")
            raw = await asyncio.wait_for(reader.read(), 5)
            assert raw.endswith(b"4\r\nhalf\r\n")
            assert b"0\r\n\r\n" not in raw
            writer.close()
    finally:
        logging.disable(logging.NOTSET)


async def test_a_slow_reader_costs_a_bounded_buffer() -> None:
    """It asks for 4 MiB and reads nothing: what waits for it here is no more than the transport's high water."""
    async with serving() as (port, _, shared):
        body = random.Random(1).randbytes(4 << 20)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"POST /stream HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        while not shared.connections:
            await asyncio.sleep(0.001)
        (connection,) = shared.connections
        while connection.writable:
            await asyncio.sleep(0.001)
        assert connection.transport.get_write_buffer_size() < 256 * 1024
        assert (await answer(reader))[2] == body
        writer.close()


async def test_an_idle_connection_ends_and_a_busy_one_does_not() -> None:
    async with serving(keep_alive_s=0.05) as (port, echo, _):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy, writer = await asyncio.open_connection("127.0.0.1", port)
        trickle, trickling = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nhost: g\r\n\r\n")
        trickling.write(b"GET /wai")
        assert await asyncio.wait_for(idle.read(), 5) == b""
        assert await asyncio.wait_for(trickle.read(), 5) == b""
        echo.released.set()
        assert (await answer(busy))[2] == b"waited"
        for one in (idle_writer, writer, trickling):
            one.close()


async def test_shutting_down_answers_what_is_under_way_and_no_more() -> None:
    async with serving() as (port, echo, shared):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nhost: g\r\n\r\nGET /echo HTTP/1.1\r\nhost: g\r\n\r\n")
        while not echo.calls:
            await asyncio.sleep(0.001)
        for connection in list(shared.connections):
            connection.shutdown()
        echo.released.set()
        status, headers, _ = await answer(busy)
        assert (status, headers[b"connection"]) == (200, b"close")
        assert await busy.read() == b""
        assert await idle.read() == b""
        for one in (idle_writer, writer):
            one.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"GET /ec",
        b"POST /echo HTTP/1.1\r\nhost: g\r\ncontent-length: 9\r\n\r\nhalf",
        b"GET /echo HTTP/1.1\r\nhost: g\r\n\r\n",
        b"GET /wait HTTP/1.1\r\nhost: g\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_what_a_client_left_is_freed_without_the_collector(raw: bytes) -> None:
    """Half a body of 30 MB must not wait for it."""
    async with serving() as (port, echo, shared):
        gc.collect()
        gc.disable()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            while not shared.connections:
                await asyncio.sleep(0.001)
            writer.write(raw)
            while raw.startswith((b"GET /w", b"POST")) and not echo.calls:
                await asyncio.sleep(0.001)
            writer.transport.abort()
            async with asyncio.timeout(5):
                while shared.connections or shared.tasks:
                    await asyncio.sleep(0.001)
                echo.calls.clear()
                while any(isinstance(thing, Connection | Call) for thing in gc.get_objects()):
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


@pytest.mark.parametrize("leave", [lambda w: w.close(), lambda w: w.transport.abort()])
async def test_the_handler_is_told_at_once(leave: Callable[[Writer], None]) -> None:
    async with serving() as (port, echo, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nhost: g\r\n\r\n")
        while not echo.calls:
            await asyncio.sleep(0.001)
        leave(writer)
        async with asyncio.timeout(5):
            while not echo.gone:
                await asyncio.sleep(0.001)
