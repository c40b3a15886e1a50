"""However the network cuts an answer up, its bytes are the same; however it is cut off, that is no success."""

import asyncio
import contextlib
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.answer import Answer
from gateway.wire.connection import Connection
from gateway.wire.errors import WireError


class Wire(asyncio.Transport):
    """A transport that does nothing but count how reading is held back."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False
        self.paused = 0

    def write(self, data: Any) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """An answer as the engine sends it, its body, and where its head ends."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    body = b"".join(pieces)
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nlink: <x>\r\n\r\n"]))
    head = interim + b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    if draw(st.booleans()):
        head += b"content-length: %d\r\n\r\n" % len(body)
        return head + body, body, len(head)
    extension = draw(st.sampled_from([b"", b";a=b"]))
    trailer = draw(st.sampled_from([b"", b"x-checksum: 1\r\n", b"x: 1\r\ny: 2\r\n"]))
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    head += b"transfer-encoding: chunked\r\n\r\n"
    return head + framed + b"0\r\n" + trailer + b"\r\n", body, len(head)


async def _feed(raw: bytes, cuts: list[int], *, buffer_bytes: int = 1 << 16) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Feed `raw` cut at `cuts` and close; the body and headers as a reader gets them."""
    loop = asyncio.get_running_loop()
    released: list[Connection] = []

    def release(connection: Connection) -> None:
        connection.rest()
        released.append(connection)

    connection = Connection(loop, lambda _: None, head_bytes=1 << 16, buffer_bytes=buffer_bytes)
    wire = Wire()
    connection.connection_made(wire)
    head = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", bodyless=False, deadline=loop.time() + 5)
    edges = [0, *sorted(set(cuts)), len(raw)]
    reader: asyncio.Task[bytes] | None = None
    try:
        for start, end in pairwise(edges):
            if start < end and not wire.closing:
                connection.data_received(raw[start:end])
            if head.done() and reader is None and not connection.incoming.in_head:
                answer = Answer(connection, release)
                reader = asyncio.ensure_future(answer.read(1 << 20, 5))
            await asyncio.sleep(0)
        connection.eof_received()
        connection.connection_lost(None)
        await head
        if connection.incoming.in_head:
            raise connection.surrender()
        if reader is None:
            answer = Answer(connection, release)
            reader = asyncio.ensure_future(answer.read(1 << 20, 5))
        body = await reader
    finally:
        if reader is not None:
            await asyncio.wait([reader])
            assert released == [connection]
        assert wire.paused == 0 or wire.closing or not released
    return body, answer.headers


@given(answers(), st.data())
async def test_any_split_of_an_answer_gives_the_same_bytes(
    answer: tuple[bytes, bytes, int], data: st.DataObject
) -> None:
    raw, body, _ = answer
    cuts = data.draw(st.lists(st.integers(1, len(raw)), max_size=30))
    got, headers = await _feed(raw, cuts, buffer_bytes=data.draw(st.sampled_from([1, 16, 1 << 16])))
    assert got == body
    assert headers[0] == (b"content-type", b"text/event-stream")
    assert len(headers) == 2


@given(answers(), st.data())
async def test_any_truncation_of_an_answer_raises(answer: tuple[bytes, bytes, int], data: st.DataObject) -> None:
    raw, _, head = answer
    end = data.draw(st.one_of(st.integers(0, len(raw) - 1), st.integers(max(head - 1, 0), len(raw) - 1)))
    cuts = data.draw(st.lists(st.integers(0, end), max_size=10))
    try:
        got = await _feed(raw[:end], cuts)
    except WireError as error:
        assert error.answered == (end > 0)
    else:
        raise AssertionError(f"{raw[:end]!r} was taken for a whole answer: {got!r}")


@given(answers(), st.binary(min_size=1, max_size=30), st.data())
async def test_damage_never_leaks_into_the_loop(
    answer: tuple[bytes, bytes, int], noise: bytes, data: st.DataObject
) -> None:
    raw, _, _ = answer
    at = data.draw(st.integers(0, len(raw)))
    cuts = data.draw(st.lists(st.integers(1, len(raw)), max_size=5))
    with contextlib.suppress(WireError):
        await _feed(raw[:at] + noise + raw[at + len(noise) :], cuts)
