"""What an answer may look like, and what becomes of its connection."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.wire import BadAnswer
from tests.wire.peer import HEADERS, OK, Side, answering, get, once

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_a_connection_is_kept_and_used_again(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url)
    for _ in range(3):
        assert await get(pool) == (200, b"ok")
    assert (len(peer.sides), pool.opened, pool.idle, pool.busy) == (1, 1, 1, 0)


async def test_the_request_arrives_as_given_with_host_and_length(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url)
    answer = await pool.request("POST", b"/v1/x?y=1", [(b"X-One", b"1"), (b"x-one", b"2")], b"{}", first_byte_s=5)
    assert await answer.read(10, 5) == b"ok"
    head, body = peer.sides[0].requests[0]
    host = peer.url.removeprefix("http://").encode()
    assert head == (
        b"POST /v1/x?y=1 HTTP/1.1\r\nhost: " + host + b"\r\nX-One: 1\r\nx-one: 2\r\ncontent-length: 2\r\n\r\n"
    )
    assert body == b"{}"


async def test_header_names_are_lower_case_and_nothing_is_left_out(serve: Any, connect: Any) -> None:
    peer = await serve(
        answering(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nSet-Cookie: a\r\nset-cookie: B\r\nContent-Length: 0\r\n\r\n")
    )
    answer = await connect(peer.url).request("GET", b"/", HEADERS, first_byte_s=5)
    assert answer.headers == [(b"x-a", b"1"), (b"set-cookie", b"a"), (b"set-cookie", b"B"), (b"content-length", b"0")]
    assert answer.header(b"set-cookie") == b"a"
    assert answer.header(b"nothing") is None
    answer.close()


@pytest.mark.parametrize(
    ("answer", "body", "kept"),
    [
        (OK, b"ok", True),
        (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", b"abcde", True),
        (CHUNKED + b"1\r\na\r\n0\r\nx-trailer: 1\r\ny: 2\r\n\r\n", b"a", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok", True),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK, b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", b"ok", True),
        (OK + b"garbage", b"ok", False),
        (OK + OK, b"ok", False),
        (b"HTTP/1.1 204 No Content\r\n\r\nunexpected", b"", False),
    ],
)
async def test_bodies_and_what_becomes_of_the_connection(
    serve: Any, connect: Any, answer: bytes, body: bytes, kept: bool
) -> None:
    peer = await serve(answering(answer))
    pool = connect(peer.url)
    got = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    assert await got.read(100, 5) == body
    assert not [name for name, _ in got.headers if name in (b"link", b"x-trailer", b"y")]
    assert (pool.idle, pool.busy) == (int(kept), 0)
    if not kept:
        await asyncio.wait_for(peer.sides[0].gone.wait(), 5)
    assert (await get(pool))[1] == body
    assert len(peer.sides) == (1 if kept else 2)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
async def test_a_body_may_end_with_the_connection(serve: Any, connect: Any, head: bytes) -> None:
    peer = await serve(once(head + b"all of it"))
    pool = connect(peer.url)
    assert await get(pool) == (200, b"all of it")
    assert pool.idle == 0


async def test_head_has_no_body_and_the_next_answer_is_its_own(serve: Any, connect: Any) -> None:
    async def script(side: Side) -> None:
        while (request := await side.request()) is not None:
            head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
            await side.send(head if request[0].startswith(b"HEAD") else OK)

    peer = await serve(script)
    pool = connect(peer.url)
    for method, body in (("HEAD", b""), ("GET", b"ok"), ("HEAD", b""), ("HEAD", b""), ("POST", b"ok")):
        assert await get(pool, method=method) == (200, body)
    assert len(peer.sides) == 1


async def test_a_body_after_head_is_not_taken_for_the_next_answer(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url)
    assert await get(pool, method="HEAD") == (200, b"")
    assert pool.idle == 0


async def test_garbage_while_idle_costs_the_connection_and_nothing_else(serve: Any, connect: Any) -> None:
    speak = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(OK)
        await speak.wait()
        await side.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url, idle_s=60)
    assert await get(pool) == (200, b"ok")
    speak.set()
    await asyncio.wait_for(peer.sides[0].gone.wait(), 5)
    assert pool.idle == 0
    assert await get(pool) == (200, b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxyz",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2_000_000,
        b"HTTP/1.1 103 Hints\r\nx: y\r\n\r\n" * 10_000,
        b"HTTP/1.1 103 Hints\r\ncontent-length: 3\r\n\r\nabc" + OK,
        b"HTTP/1.1 199 Whatever\r\ncontent-length: 3\r\n\r\nabc" + OK,
        b"HTTP/1.1 100 Continue\r\ncontent-length: 3\r\n\r\nabc" + OK,
    ],
)
async def test_what_is_no_answer_is_refused_and_closed(serve: Any, connect: Any, answer: bytes) -> None:
    async def script(side: Side) -> None:
        if await side.request() is not None:
            await side.send(answer)
            await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    with pytest.raises(BadAnswer) as failure:
        await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    assert failure.value.answered
    assert failure.value.stage == "head"
    assert (pool.idle, pool.busy) == (0, 0)
    await asyncio.wait_for(peer.emptied(), 5)


@pytest.mark.parametrize("tail", [b"zz\r\n", b"1\r\nabc", b"0\r\nx: " + b"t" * 400_000])
async def test_broken_framing_after_a_good_start_raises_after_the_good_bytes(
    serve: Any, connect: Any, tail: bytes
) -> None:
    more = asyncio.Event()

    async def script(side: Side) -> None:
        await side.request()
        await side.send(CHUNKED + b"4\r\ngood\r\n")
        await more.wait()
        await side.send(tail)
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    assert await answer.chunk(5) == b"good"
    more.set()
    with pytest.raises(BadAnswer) as failure:
        while await answer.chunk(5):
            pass
    assert failure.value.stage == "body"
    assert pool.busy == 0


async def test_what_arrived_together_leaves_in_one_piece_without_suspending(serve: Any, connect: Any) -> None:
    body = b"".join(b"8\r\ndata: %d\n\r\n" % n for n in range(5))
    peer = await serve(answering(CHUNKED + body + b"0\r\n\r\n"))
    answer = await connect(peer.url).request("GET", b"/", HEADERS, first_byte_s=5)
    for expected in (b"".join(b"data: %d\n" % n for n in range(5)), b"", b""):
        with pytest.raises(StopIteration) as done:
            answer.chunk(5).send(None)
        assert done.value.value == expected


async def test_read_refuses_more_than_the_limit(serve: Any, connect: Any) -> None:
    peer = await serve(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 100))
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    with pytest.raises(BadAnswer, match="over 99 bytes"):
        await answer.read(99, 5)
    assert pool.busy == 0
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    assert len(await answer.read(100, 5)) == 100


async def test_closing_is_idempotent_and_a_closed_answer_says_so(serve: Any, connect: Any) -> None:
    peer = await serve(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab"))
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    answer.close()
    answer.close()
    assert (pool.idle, pool.busy) == (0, 0)
    with pytest.raises(Exception, match="was closed"):
        await answer.chunk(5)
    await asyncio.wait_for(peer.emptied(), 5)


async def test_a_complete_answer_closed_unread_keeps_its_connection(serve: Any, connect: Any) -> None:
    peer = await serve(answering(OK))
    pool = connect(peer.url)
    answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
    answer.close()
    assert pool.idle == 1
    assert await get(pool) == (200, b"ok")


async def test_an_answer_nobody_closed_gives_its_slot_back(
    serve: Callable[..., Any], connect: Any, recwarn: pytest.WarningsRecorder
) -> None:
    async def script(side: Side) -> None:
        await side.request()
        await side.send(CHUNKED)
        await side.eof()

    peer = await serve(script)
    pool = connect(peer.url)
    with pytest.warns(ResourceWarning, match="not closed"):
        answer = await pool.request("GET", b"/", HEADERS, first_byte_s=5)
        del answer
    await asyncio.wait_for(peer.emptied(), 5)
    assert pool.busy == 0
