"""A client's connection: requests come in, answers go out, one after the other."""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import httptools

from gateway.front.call import Call
from gateway.front.turnstile import Turnstile
from gateway.wire.deadline import Deadline

log = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024
"""Largest head of a request, and most of framing and trailers in a row, give or take one read of the transport."""

Handler = Callable[[Call], Awaitable[None]]


class State(Protocol):
    """What all connections of uvicorn's server share."""

    total_requests: int
    connections: set[Any]
    tasks: set[asyncio.Task[None]]
    default_headers: list[tuple[bytes, bytes]]


class Connection(asyncio.Protocol):
    """Reads requests and has `handler` answer them, in order.

    uvicorn's server makes them, tells them by `shutdown` to come to an end, and waits until `State` is empty. While a
    request is answered the next one is read, so that a client that leaves is noticed; reading stops when that one is
    here. A connection without a request closes after `keep_alive_s`, and so does one whose head takes longer.
    """

    def __init__(self, handler: Handler, state: State, turnstile: Turnstile, keep_alive_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.write: Callable[[bytes], None]
        self.writable = True
        self._handler = handler
        self._state = state
        self._turnstile = turnstile
        self._keep_alive_s = keep_alive_s
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._deadline = Deadline(self.loop, self._idle)
        self._arriving: Call | None = None
        self._answering: Call | None = None
        self._next: deque[Call] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._reading = True
        self._in_head = True
        self._barren = 0  # bytes since the last one of a body, or the last request
        self._ending = False  # no request after the present one

    @property
    def date(self) -> bytes:
        """What uvicorn wants in every head; made anew each second."""
        return b"".join(b"%b: %b\r\n" % header for header in self._state.default_headers)

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port; an empty address if it came by a unix socket, None if it is not known any more."""
        found = self.transport.get_extra_info("peername")
        if found is None:
            return None
        return (found[0], found[1]) if isinstance(found, tuple) else ("", 0)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self.write = self.transport.write
        found = cast(socket.socket | None, transport.get_extra_info("socket"))
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Nagle's algorithm would hold tokens back
        self._state.connections.add(self)
        self._deadline.set(self.loop.time() + self._keep_alive_s)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return  # nothing that comes now is heard
        if self._in_head and not self._barren and self._answering is None:
            self._deadline.set(self.loop.time() + self._keep_alive_s)  # for all of the head
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, b"Not an HTTP request.")
        if self._barren > HEAD_BYTES:
            self._refuse(431, b"The head of the request is too large, or what is around its body.")

    def eof_received(self) -> bool | None:
        return None  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._deadline.stop()
        self._parser = None
        self.resume_writing()
        self._next.clear()
        self._arriving = None  # they refer back to us: no collector is needed for what they hold
        call, self._answering = self._answering, None
        if call is not None:
            call.lost()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # What the parser calls. Raising stops it.

    def on_message_begin(self) -> None:
        self._arriving = Call(self)
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._call().url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            self._call().headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        call = self._call()
        parser = cast(httptools.HttpRequestParser, self._parser)
        call.method = parser.get_method()
        call.version = parser.get_http_version()
        if parser.should_upgrade():
            return  # it will be read again: see `_decline`
        self._in_head = False
        self._barren = 0
        call.keep_alive = parser.should_keep_alive() and call.version == "1.1" and not self._ending
        if self._answering is None:
            self._answer(call)
        else:
            self._next.append(call)
            self.pause_reading()

    def on_body(self, data: bytes) -> None:
        self._barren = 0
        self._call().arrived(data)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._barren = 0
        self._call().whole()

    # What a call uses.

    async def drain(self) -> None:
        while not self.writable:
            self._drained = self.loop.create_future()
            await self._drained

    def pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def answered(self, call: Call) -> None:
        """The answer to the present call is written."""
        self._answering = None
        self._state.total_requests += 1
        if self._ending or not call.keep_alive:
            self.transport.close()
        elif self._next:
            self._answer(self._next.popleft())
            if not self._next:
                self.resume_reading()
        else:
            self.resume_reading()
            self._deadline.set(self.loop.time() + self._keep_alive_s)

    # What the server calls.

    def retire(self) -> None:
        """Answer one request more at most, so that the client turns to another gateway by itself."""
        self._ending = True
        if self._answering is not None:
            self._answering.keep_alive = False

    def dismiss(self) -> None:
        """End now: what is being answered ends with an error that its client can read."""
        self.shutdown()
        if self._answering is not None:
            self._answering.dismiss()

    def shutdown(self) -> None:
        """Come to an end: the present request is answered, and no other."""
        self._ending = True
        if self._answering is None:
            self.transport.close()
        else:
            self._answering.keep_alive = False

    # Ours.

    def _call(self) -> Call:
        """The call that is arriving."""
        call = self._arriving
        assert call is not None
        return call

    def _answer(self, call: Call) -> None:
        self._answering = call
        self._turnstile.enter(self._start)

    def _start(self) -> None:
        call = self._answering
        if call is None or call.gone:
            return  # it left while it waited
        task = self.loop.create_task(self._serve(call))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _serve(self, call: Call) -> None:
        try:
            await self._handler(call)
        except Exception:
            log.exception("%s %s", call.method.decode(), call.url.decode(errors="replace"))
            if not call.started:
                call.reply(500, [(b"content-type", b"text/plain")], b"Internal Server Error")
        finally:
            if not call.ended and not call.gone:
                if not self.writable:
                    self.transport.abort()  # what waits here would wait for ever
                self.transport.close()  # half an answer must not look like a whole one

    def _decline(self, rest: bytes) -> None:
        """Read a request that asks for an upgrade, and `rest`, what came behind its head, as if it did not ask.

        Nobody needs it (RFC 9110, section 7.8), but Java's client asks for h2c with whatever it sends first, and the
        parser takes what follows for another protocol.
        """
        try:
            while True:
                call = self._call()
                if call.method == b"CONNECT":
                    self._refuse(405, b"This is no proxy.")
                    return
                lines = [b"%b: %b\r\n" % header for header in call.headers if header[0] != b"upgrade"]
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(
                    b"%b %b HTTP/%b\r\n%b\r\n" % (call.method, call.url, call.version.encode(), b"".join(lines))
                )
                try:
                    self._parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:  # of the next request
                    rest = rest[upgrade.args[0] :]
        except httptools.HttpParserError:
            self._refuse(400, b"Not an HTTP request.")

    def _refuse(self, status: int, why: bytes) -> None:
        """End the connection over what is no request; after the answer that is under way, if its request is whole."""
        if self._parser is None:
            return
        self._parser = None
        self._ending = True
        call = self._answering
        if call is not None and (call.complete or call.started):
            call.keep_alive = False
            return
        if call is None:
            self._answering = call = Call(self)
        call.keep_alive = False
        call.reply(status, [(b"content-type", b"text/plain")], why)
        call.lost()

    def _idle(self) -> None:
        if self._answering is None:
            self.transport.close()
