"""One connection to a Redis server: commands leave as they come, answers come back in order.

redis-py's pipeline costs some 50 µs of CPU for a call; this costs a third of that. Everything that is not hot
(checks, loading the library, inspection) goes through redis-py.
"""

import asyncio
import time
from collections import deque
from typing import Any, cast

import hiredis

from engines.store import Address, Place

DEMOTED = ("READONLY", "MASTERDOWN", "LOADING")
"""How answers begin of a server that is no primary (any more, or yet)."""


def pack(*parts: bytes) -> bytes:
    """A command as Redis reads it."""
    return b"*%d\r\n" % len(parts) + bulk(*parts)


def bulk(*parts: bytes) -> bytes:
    """Arguments of a command."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class ServerError(Exception):
    """Redis refused a command; the message is its own."""


class Wire(asyncio.Protocol):
    """A connection; `send` and `post` after `open_wire` has made it."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=ServerError, protocolError=ServerError)
        self._waiting: deque[asyncio.Future[Any] | None] = deque()  # None: nobody waits for this answer
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.heard_s = time.monotonic()
        """When the server said something last, or this was made."""
        self._posted = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses

    def send(self, commands: bytes, count: int) -> asyncio.Future[Any]:
        """Write `count` commands; the future is the last one's answer."""
        assert self.transport is not None
        if self._posted:
            commands = self._posted + commands
            self._posted = b""
        for _ in range(count - 1):
            self._waiting.append(None)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.transport.write(commands)
        return answer

    def post(self, commands: bytes, count: int) -> None:
        """Write `count` commands soon, together with what else is written, and drop the answers."""
        if not self._posted:
            asyncio.get_running_loop().call_soon(self._flush)
        self._posted += commands
        for _ in range(count):
            self._waiting.append(None)

    def _flush(self) -> None:
        if self._posted and self.transport is not None:
            posted, self._posted = self._posted, b""
            self.transport.write(posted)

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            answer = self._waiting.popleft()
            if isinstance(reply, ServerError) and str(reply).startswith(DEMOTED):
                self.closed = True  # whoever asks next looks for the primary
            if answer is None or answer.done():
                continue  # nobody waits for it (any more)
            if isinstance(reply, ServerError):
                answer.set_exception(reply)
                answer.exception()  # seen: who does not wait for it shall not be told of it at exit
            else:
                answer.set_result(reply)
        if self.closed and self.transport is not None:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        for answer in self._waiting:
            if answer is not None and not answer.done():
                answer.set_exception(ConnectionError("the connection to Redis was lost"))
                answer.exception()
        self._waiting.clear()

    def abandon(self) -> None:
        """Nothing more is expected of the server at the other end: who asks next gets another connection."""
        self.closed = True
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


async def open_wire(address: Address, place: Place | None = None) -> Wire:
    """Connect; log in and choose the database as `place` says. Raises OSError, `ServerError`."""
    loop = asyncio.get_running_loop()
    if address.path:
        _, wire = await loop.create_unix_connection(Wire, address.path)
    else:
        tls = True if place is not None and place.tls else None
        _, wire = await loop.create_connection(Wire, address.host, address.port, ssl=tls)
    try:
        if place is not None and place.password:
            names = [name.encode() for name in (place.user, place.password) if name]
            await wire.send(pack(b"AUTH", *names), 1)
        if place is not None and place.database:
            await wire.send(pack(b"SELECT", str(place.database).encode()), 1)
    except BaseException:
        wire.close()
        raise
    return wire
