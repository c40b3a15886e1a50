"""The connections of one engine."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.wire.answer import Answer
from gateway.wire.connection import Connection
from gateway.wire.endpoint import Endpoint
from gateway.wire.errors import ClosedEarly, ConnectFailed, TimedOut, WentStale
from gateway.wire.head import render


@dataclass(frozen=True, slots=True)
class Limits:
    """What one engine may cost us."""

    connections: int = 4096
    """At most so many at once; a request above it waits its turn."""
    idle_connections: int = 256
    """Kept open for the next request."""
    idle_s: float = 4.0
    """How long one is kept: less than the 5 s after which uvicorn, so vLLM, closes an idle connection."""
    connect_s: float = 3.0
    """For name, TCP and TLS together."""
    head_bytes: int = 64 * 1024
    """Largest head of an answer."""
    buffer_bytes: int = 64 * 1024
    """Of a body, received and not taken, before reading stops. All is taken at once, so the low water is zero."""


class Pool:
    """Keep-alive connections to one engine (`http://`, `https://`, `unix:///path`), and a bound on their number.

    A slot is the right to one connection. A request takes one before it does anything, and there is one place that
    gives it back (`_vacate`), straight to whoever waits longest, so nobody is overtaken. The freshest idle connection
    is used first, and the rest expire by one timer for all.
    """

    def __init__(self, url: str, *, limits: Limits = Limits()) -> None:
        self._endpoint = Endpoint(url)
        self._limits = limits
        self._taken = 0
        self._idle: OrderedDict[Connection, float] = OrderedDict()  # since when (loop time), oldest first
        self._waiting: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Timeout] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False
        self.opened = 0
        """Connections opened so far."""

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Slots taken: connections that carry an exchange or are being opened."""
        return self._taken

    def __repr__(self) -> str:
        counts = f"busy {self.busy}, idle {self.idle}, waiting {len(self._waiting)}, opened {self.opened}"
        return f"<Pool {self._endpoint.url} {counts}{', closed' if self._closed else ''}>"

    async def request(
        self,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes = b"",
        *,
        first_byte_s: float,
        twice: bool = True,
    ) -> Answer:
        """Send a request and return when the head of its answer is here.

        `headers` are sent as they are, Host and Content-Length are added. `first_byte_s` (seconds) counts from the
        call: waiting for a connection, opening it, sending, and the head. A kept connection that turns out to be closed
        before it answered anything is replaced by a fresh one, once; if the request must not be sent `twice`,
        `WentStale` is raised instead. Raises a `WireError`, or `ValueError` for a head that cannot be sent. Cancelling
        closes the connection at once.
        """
        head = render(method, target, self._endpoint.host, headers, len(body))
        bodyless = method == "HEAD"
        deadline = asyncio.get_running_loop().time() + first_byte_s
        connection = self._reuse() or await self._obtain(deadline)
        try:
            await connection.send(head, body, bodyless=bodyless, deadline=deadline)
            if connection.stale and not twice:
                raise WentStale(f"{self._endpoint.url}: closed a kept connection", "first_byte")
            if connection.stale:
                connection = await self._replace(connection, deadline)
                await connection.send(head, body, bodyless=bodyless, deadline=deadline)
            if connection.fault is not None and connection.incoming.in_head:  # else the body tells of it
                raise connection.surrender()
        except BaseException:
            self._vacate(connection)
            raise
        return Answer(connection, self._vacate)

    def close(self) -> None:
        """Abort all connections, idle and busy. Requests under way and new ones fail."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()
        for scope in self._opening:
            if not scope.expired():
                scope.reschedule(0.0)
        while self._waiting:  # each with a slot to fail in
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                self._taken += 1
                waiter.set_result(None)

    # Slots: who gets one is decided here, without waiting.

    def _reuse(self) -> Connection | None:
        """The freshest idle connection, with a slot taken for it."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable:
                self._taken += 1
                return connection
        return None

    def _vacate(self, connection: Connection | None) -> None:
        """Give a slot back, with the connection in it if it can be used again."""
        if connection is not None and not connection.rest():
            connection.abort()
            connection = None
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._taken -= 1
        if connection is not None:
            self._keep(connection)

    async def _obtain(self, deadline: float) -> Connection:
        """A slot with a connection in it: room for a new one, or the turn of a waiter."""
        connection = None
        if self._taken < self._limits.connections or self._closed:
            self._taken += 1
        else:
            connection = await self._turn(deadline)
        if connection is not None and connection.usable:
            return connection
        try:
            return await self._connect(deadline)
        except BaseException:
            self._vacate(None)
            raise

    async def _turn(self, deadline: float) -> Connection | None:
        """Wait for a slot: with a connection that was just used, or None to open one."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():  # given a slot and cancelled before it could use it
                self._vacate(waiter.result())
            if isinstance(error, TimeoutError):
                raise TimedOut(f"no connection became free of {self!r}", "connect") from None
            raise

    # Connections: opening, keeping, losing.

    async def _connect(self, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        url, limits = self._endpoint.url, self._limits
        if self._closed:
            raise ConnectFailed(f"{url}: the pool is closed", "connect")
        connect_by = loop.time() + limits.connect_s
        connection = Connection(loop, self._lost, head_bytes=limits.head_bytes, buffer_bytes=limits.buffer_bytes)
        scope = asyncio.timeout_at(min(connect_by, deadline))
        self._opening.add(scope)
        try:
            async with scope:
                await self._endpoint.connect(connection)
        except BaseException as error:
            connection.abort()
            if not isinstance(error, OSError):  # TimeoutError and SSLError are
                raise
            if self._closed:
                raise ConnectFailed(f"{url}: the pool is closed", "connect") from None
            if scope.expired() and deadline < connect_by:
                raise TimedOut(f"{url}: deadline passed while connecting", "connect") from None
            why = f"no connection within {limits.connect_s:g} s" if scope.expired() else str(error)
            raise ConnectFailed(f"{url}: {why}", "connect") from error
        finally:
            self._opening.discard(scope)
        if self._closed or not connection.usable:
            connection.abort()
            raise ConnectFailed(f"{url}: closed as soon as it was open", "connect")
        self.opened += 1
        self._open.add(connection)
        return connection

    async def _replace(self, stale: Connection, deadline: float) -> Connection:
        """A fresh connection in the slot of a stale one.

        Where there is none the stale one's error is raised: the request was written once, and an error that promises
        that nothing was sent would be wrong.
        """
        try:
            return await self._connect(deadline)
        except (ConnectFailed, TimedOut) as error:
            fault = stale.surrender()
            raise ClosedEarly(f"{fault}; then {error}", fault.stage) from error

    def _keep(self, connection: Connection) -> None:
        now = connection.loop.time()
        self._idle[connection] = now
        if len(self._idle) > self._limits.idle_connections:
            oldest, _ = self._idle.popitem(last=False)
            oldest.abort()
        if self._expiry is None:
            self._expiry = connection.loop.call_at(now + self._limits.idle_s, self._expire, connection.loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what was idle too long; one timer, armed for the oldest."""
        self._expiry = None
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            ends = since + self._limits.idle_s
            if ends > loop.time():
                self._expiry = loop.call_at(ends, self._expire, loop)
                return
            del self._idle[connection]
            connection.abort()

    def _lost(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._open.discard(connection)
