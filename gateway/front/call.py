"""One request of a client, and the answer to it."""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

Headers = Sequence[tuple[bytes, bytes]]

HELD_BYTES = 64 * 1024
"""Of a request body that nobody reads yet, before reading stops."""

_STATUS = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_BODYLESS = (204, 304)


class Gone(Exception):
    """The client closed its connection."""


class Dismissed(Exception):
    """The gateway ends before the request could."""


class Line(Protocol):
    """The connection that a call came in on."""

    writable: bool
    """Whether the client keeps up with what it is sent."""
    write: Callable[[bytes], None]

    @property
    def peer(self) -> tuple[str, int] | None:
        """The client's address; an empty one if it came by a unix socket, None if it is not known any more."""
        ...

    @property
    def date(self) -> bytes:
        """The line of the Date header."""
        ...

    async def drain(self) -> None:
        """Wait until it is `writable`, or gone."""
        ...

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def answered(self, call: "Call") -> None: ...


class Call:
    """Read with `body`, answer with `reply`, or with `start`, `write` (or `send`) and `end`.

    What is sent to a client that has gone is dropped. Header names are in lower case, those of framing and connection
    are added. Raises `ValueError` for a header with CR or LF.
    """

    __slots__ = (
        "_chunked",
        "_head",
        "_line",
        "_mute",
        "_pieces",
        "_waiter",
        "complete",
        "dismissed",
        "ended",
        "gone",
        "headers",
        "keep_alive",
        "left",
        "method",
        "received",
        "started",
        "url",
        "version",
    )

    def __init__(self, line: Line) -> None:
        self._line = line
        self.method = b""
        self.url = b""
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = True
        self.complete = False
        """Whether all of the body is here."""
        self.received = 0
        """Bytes of the body so far."""
        self.started = False
        self.ended = False
        self.gone = False
        self.dismissed = False
        """Whether the gateway ends before the answer could."""
        self.left: Callable[[], object] | None = None
        """Called once when the client leaves, or is dismissed, before the end of its answer."""
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""  # of the answer, until it leaves with the first piece
        self._chunked = False
        self._mute = False  # an answer without a body, whatever is sent

    # The request.

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the client."""
        return self._line.peer

    async def body(self, limit: int, drain: int, idle_s: float) -> bytes | None:
        """The whole body; None if it has more than `limit` bytes.

        Of a body that is too large up to `drain` bytes are read and thrown away, so that its sender gets to read the
        refusal. Raises `Gone`, `Dismissed`, and `TimeoutError` when nothing comes for `idle_s` seconds.
        """
        if not (self.complete or self.received) and self._expects():
            if self._announced() > limit:
                self.keep_alive = False  # it may send the body or not
                return None
            self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.complete and self.received <= drain:
            if self.gone:
                raise Gone
            if self.dismissed:
                raise Dismissed
            if self.received > limit:
                self._pieces.clear()
            self._line.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(idle_s):
                await self._waiter
        return self.ready(limit)

    def ready(self, limit: int) -> bytes | None:
        """The whole body if all of it is here and it has no more than `limit` bytes."""
        if not self.complete or self.received > limit:
            return None
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _expects(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body."""
        asked = any(name == b"expect" and value.lower() == b"100-continue" for name, value in self.headers)
        return asked and self.version == "1.1"

    def _announced(self) -> int:
        """Bytes of the body, as far as the head says."""
        return next((int(value) for name, value in self.headers if name == b"content-length"), 0)

    def arrived(self, data: bytes) -> None:
        """A piece of the body is here."""
        if self.ended:
            return
        self.received += len(data)
        self._pieces.append(data)
        if self._waiter is not None:
            self._wake()
        elif self.received > HELD_BYTES:
            self._line.pause_reading()

    def whole(self) -> None:
        """All of the body is here."""
        self.complete = True
        if self._waiter is not None:
            self._wake()

    def lost(self) -> None:
        """The client has gone."""
        self.gone = True
        if self._waiter is not None:
            self._wake()
        if self.left is not None:
            self.left()

    def dismiss(self) -> None:
        """Whoever answers shall come to an end now."""
        if not self.ended:
            self.dismissed = True
            if self._waiter is not None:
                self._wake()
            if self.left is not None:
                self.left()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The answer.

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer whose length is not known; its head leaves with the first piece."""
        self._mute = self.method == b"HEAD" or status in _BODYLESS
        self._chunked = self.version == "1.1" and not self._mute
        if not (self._chunked or self._mute):
            self.keep_alive = False  # the end of the connection is the end of the body
        self._head = self._render(status, headers, b"transfer-encoding: chunked\r\n" if self._chunked else b"")

    def write(self, piece: bytes) -> bool:
        """A piece of it. False: the client is slow, wait for `drain` before the next."""
        line = self._line
        if not self.gone:
            head, self._head = self._head, b""
            if self._chunked:
                line.write(b"%b%x\r\n%b\r\n" % (head, len(piece), piece))
            elif not self._mute:
                line.write(head + piece)
            elif head:
                line.write(head)
        return line.writable

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written, or has gone."""
        await self._line.drain()

    async def send(self, piece: bytes) -> None:
        """Write a piece, and wait while the client is slow."""
        if not self.write(piece):
            await self.drain()

    def end(self) -> None:
        """The end of it."""
        head, self._head = self._head, b""
        if self._chunked:
            self._finish(head + b"0\r\n\r\n")
        else:
            self._finish(head)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer."""
        bare = status in _BODYLESS
        head = self._render(status, headers, b"" if bare else b"content-length: %d\r\n" % len(body))
        self._finish(head if bare or self.method == b"HEAD" else head + body)

    def _render(self, status: int, headers: Headers, framing: bytes) -> bytes:
        parts = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status, self._line.date]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (framing, b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        head = b"".join(parts)
        lines = len(headers) + 3 + (framing != b"") + (not self.keep_alive)
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise ValueError(f"status {status}: CR or LF in a header: reject it")
        self.started = True
        return head

    def _finish(self, data: bytes) -> None:
        self.ended = True
        self.left = None
        if not self.gone:
            if data:
                self._line.write(data)
            self._line.answered(self)
