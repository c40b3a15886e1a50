"""One connection to an engine: a request goes out, its answer is parsed as it comes in."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import httptools

from gateway.wire.deadline import Deadline
from gateway.wire.errors import BadAnswer, ClosedEarly, Stage, TimedOut, WireError

_SLICE = 256 * 1024
"""A body above this is handed to the transport in slices, so that no more than one waits in its buffers."""


class Connection(asyncio.Protocol):
    """Carries one exchange after the other; whoever holds it is its only user.

    `send` starts an exchange, `more` waits for body bytes, `take` takes them, `rest` ends it. What has arrived and was
    not taken is in `pieces`, at most `buffer_bytes` and one read of the transport (uvloop: 256 KiB): then reading stops
    until it is taken, and the engine is held back by TCP. Failures are kept in `fault`, never thrown into the loop.

    The parser calls `pieces.append` directly: a body byte passes no Python function but `data_received`.
    """

    __slots__ = (
        "_barren",
        "_bodyless",
        "_buffer_bytes",
        "_buffered",
        "_deadline",
        "_head_bytes",
        "_head_limit",
        "_in_head",
        "_interim",
        "_keep_alive",
        "_lost",
        "_parser",
        "_reading",
        "_to_close",
        "_transport",
        "_unsent",
        "_waiter",
        "_writing",
        "complete",
        "fault",
        "headers",
        "loop",
        "on_body",
        "pieces",
        "status",
        "used",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lost: Callable[["Connection"], None],
        *,
        head_bytes: int,
        buffer_bytes: int,
    ) -> None:
        self.loop = loop
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = True  # no answer is outstanding
        self.fault: WireError | None = None
        self.used = False  # an exchange was carried before the present one
        self._lost = lost
        self._head_limit = head_bytes
        self._buffer_bytes = buffer_bytes
        self._transport: asyncio.Transport | None = None
        self._deadline: Deadline | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unsent: memoryview | None = None  # of a large body
        self._writing = True  # the transport takes more
        self._reading = True
        self._buffered = 0  # bytes received and not taken, framing included
        self._in_head = False
        self._head_bytes = 0  # received up to the end of the head, interim answers included
        self._barren = 0  # bytes received since the last body byte: chunk extensions, trailers
        self._bodyless = False  # the answer to HEAD
        self._interim = False  # inside a 1xx
        self._to_close = False  # the body ends with the connection
        self._keep_alive = False

    # The exchange, as its user sees it.

    @property
    def usable(self) -> bool:
        """True if the peer is there, as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def stale(self) -> bool:
        """True if a connection that had served before was closed without a byte of an answer to this request."""
        return self.used and isinstance(self.fault, ClosedEarly) and not self.fault.answered

    def send(self, head: bytes, body: bytes, *, bodyless: bool, deadline: float) -> asyncio.Future[None]:
        """Send a request. The future is done when the answer's head is here, or `fault` is set, or `deadline` (loop
        time) has passed, which is a `fault` too. `bodyless`: the method is HEAD."""
        assert self._transport is not None and self._deadline is not None
        self.complete = False
        self.headers = []
        self._in_head = True
        self._head_bytes = self._barren = 0
        self._interim = self._to_close = self._keep_alive = False
        if bodyless or self._bodyless or self._parser is None:
            # A parser that saw a HEAD answer still waits for the body that its Content-Length announced.
            self._parser = httptools.HttpResponseParser(self)
        self._bodyless = bodyless
        if not body:
            self._transport.write(head)
        elif len(body) <= _SLICE:
            self._transport.writelines([head, body])
        else:
            view = memoryview(body)
            self._unsent = view[_SLICE:]
            self._transport.writelines([head, view[:_SLICE]])
            self._send_more()
        self._deadline.set(deadline)
        self._waiter = self.loop.create_future()
        return self._waiter

    def more(self, idle_s: float) -> asyncio.Future[None]:
        """The future is done when `pieces` has some, or the answer is `complete`, or `fault` is set."""
        if self._waiter is not None:
            raise RuntimeError("another task waits for this answer already: one reader at a time")
        waiter = self.loop.create_future()
        if self.fault is not None or self._deadline is None:
            waiter.set_result(None)
            return waiter
        self._deadline.set(self.loop.time() + idle_s)
        self._waiter = waiter
        return waiter

    def take(self) -> bytes:
        """All that has arrived, in one piece (`pieces` must not be empty)."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        if not self._reading:
            self._resume()
        return data

    def surrender(self) -> WireError:
        """The fault, to be raised; it is kept no longer, which spares the collector a cycle."""
        fault, self.fault = self.fault, None
        return fault or ClosedEarly("the connection was given up", self._stage(), answered=self._head_bytes > 0)

    def rest(self) -> bool:
        """End the exchange. True if the connection can carry another, else it is aborted."""
        self.pieces.clear()
        self._buffered = 0
        self._wake()
        if self.complete and self._keep_alive and self._unsent is None and self._writing and self.usable:
            self.used = True
            if not self._reading:
                self._resume()
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close the socket now, whatever is in flight."""
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self._deadline = Deadline(self.loop, self._due)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        unasked, began_in_head = self.complete or self.fault is not None, self._in_head
        if unasked:
            self.abort()
            return
        if began_in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)  # type: ignore[union-attr]  # there is one while an answer is outstanding
        except httptools.HttpParserError as error:
            if not self.complete:
                self._fail(BadAnswer(f"not an answer: {error.__context__ or error}", self._stage(), answered=True))
                return
            self._keep_alive = False  # the answer is whole, what follows it is not ours
        if began_in_head:
            if self._head_bytes > self._head_limit and self._head_too_large():
                self._fail(BadAnswer(f"head over {self._head_limit} bytes", "head", answered=True))
                return
            if self._in_head:
                return
        if self.pieces:
            self._barren = 0
            self._buffered += len(data)
            if self._bodyless:
                self.pieces.clear()
                self._keep_alive = False
            elif self._buffered >= self._buffer_bytes and self._reading and not self.complete and self.usable:
                self._reading = False
                self._transport.pause_reading()  # type: ignore[union-attr]
        elif not began_in_head and not self.complete:
            self._barren += len(data)
            if self._barren > self._head_limit:
                self._fail(BadAnswer(f"{self._barren} bytes of framing without a body byte", "body", answered=True))
            return
        if self._waiter is not None:
            self._wake()

    def eof_received(self) -> bool | None:
        if self._to_close and not self._in_head and not self.complete:
            self.complete = True
            self._wake()
        return None  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete and self.fault is None:
            why = f": {exc}" if exc is not None else ""
            self.fault = ClosedEarly(
                f"closed before the answer was complete{why}", self._stage(), answered=self._head_bytes > 0
            )
        self._transport = None
        self._parser = None
        self._unsent = None
        if self._deadline is not None:
            self._deadline.stop()
            self._deadline = None
        self._wake()
        self._lost(self)

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        if self._unsent is not None:
            self._send_more()

    # What the parser calls (`on_body` is `pieces.append`).

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = self.status = parser.get_status_code()  # type: ignore[union-attr]
        if status < 200:
            if status == 101:
                raise ValueError("101 Switching Protocols was not asked for")
            self._interim = True
            self.headers.clear()
            return
        self._in_head = False
        self._to_close = True
        for name, value in self.headers:
            if name == b"content-length":
                self._to_close = False
            elif name == b"transfer-encoding":
                self._to_close = False
                if value.strip().lower() != b"chunked":
                    raise ValueError(f"transfer-encoding {value!r} was not asked for")
        if self._bodyless:
            self.complete = True
            self._keep_alive = parser.should_keep_alive()  # type: ignore[union-attr]

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            return
        self.complete = True
        self._keep_alive = self._parser.should_keep_alive()  # type: ignore[union-attr]

    # Ours.

    def _stage(self) -> Stage:
        if self._head_bytes:
            return "head" if self._in_head else "body"
        return "first_byte" if self._unsent is None and self._writing else "send"

    def _head_too_large(self) -> bool:
        if self._in_head:
            return True
        return sum(len(name) + len(value) + 4 for name, value in self.headers) > self._head_limit

    def _send_more(self) -> None:
        while self._unsent is not None and self._writing and self.usable:
            part, rest = self._unsent[:_SLICE], self._unsent[_SLICE:]
            self._unsent = rest if len(rest) else None
            self._transport.write(part)  # type: ignore[union-attr]

    def _resume(self) -> None:
        self._reading = True
        if self.usable:
            self._transport.resume_reading()  # type: ignore[union-attr]

    def _due(self) -> None:
        if self._waiter is not None:
            stage = self._stage()
            self._fail(TimedOut(f"deadline passed at {stage}", stage, answered=self._head_bytes > 0))

    def _fail(self, fault: WireError) -> None:
        self.fault = fault
        self.abort()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
