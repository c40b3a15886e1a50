"""One connection to Redis for the hot path: commands leave as they come, answers come back in order.

redis-py's pipeline costs some 50 µs of CPU for a call; this costs a third of that. Everything that is not hot
(checks, loading the library, inspection) goes through redis-py.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url

from gateway.index.contract import Unavailable

log = logging.getLogger(__name__)

FAILURES = 5
"""So many in a row, and nothing is asked any more but one call every `PROBE_S`."""

PROBE_S = 0.5
_CONNECT_S = 2.0


def pack(*parts: bytes) -> bytes:
    """A command as Redis reads it."""
    return b"*%d\r\n" % len(parts) + bulk(*parts)


def bulk(*parts: bytes) -> bytes:
    """Arguments of a command."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class ServerError(Exception):
    """Redis refused a command; the message is its own."""


class _Wire(asyncio.Protocol):
    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=ServerError, protocolError=ServerError)
        self._waiting: deque[asyncio.Future[Any] | None] = deque()  # None: nobody waits for this answer
        self.transport: asyncio.Transport | None = None
        self.closed = False
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
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            answer = self._waiting.popleft()
            if answer is None or answer.done():
                continue  # nobody waits for it (any more)
            if isinstance(reply, ServerError):
                answer.set_exception(reply)
                answer.exception()  # seen: who does not wait for it shall not be told of it at exit
            else:
                answer.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        for answer in self._waiting:
            if answer is not None and not answer.done():
                answer.set_exception(ConnectionError("the connection to Redis was lost"))
                answer.exception()
        self._waiting.clear()


class Link:
    """Keeps one connection to the server of `url`, and gives up quickly where it does not answer."""

    def __init__(self, url: str) -> None:
        self._options: dict[str, Any] = dict(parse_url(url))
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0
        self._probe_s = 0.0

    async def connect(self) -> None:
        """Connect, if that is not done. Raises OSError, `ServerError`."""
        if self._wire is not None and not self._wire.closed:
            return
        options, loop = self._options, asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            if "path" in options:
                _, wire = await loop.create_unix_connection(_Wire, options["path"])
            else:
                tls = options.get("connection_class") is not None
                host, port = options.get("host", "localhost"), int(options.get("port", 6379))
                _, wire = await loop.create_connection(_Wire, host, port, ssl=tls or None)
            if password := options.get("password"):
                names = [name.encode() for name in (options.get("username"), password) if name]
                await wire.send(pack(b"AUTH", *names), 1)
            if database := options.get("db"):
                await wire.send(pack(b"SELECT", str(database).encode()), 1)
        self._wire = wire

    async def _connected(self, budget_s: float) -> _Wire:
        """The connection; waits so long for a new one. Raises `Unavailable`."""
        if self._wire is not None and not self._wire.closed:
            return self._wire
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._again())
        await asyncio.wait((self._connecting,), timeout=budget_s)
        if self._wire is None or self._wire.closed:
            self._failures += 1
            raise Unavailable("no connection to the index")
        return self._wire

    async def _again(self) -> None:
        try:
            await self.connect()
        except (OSError, ServerError, TimeoutError) as error:
            log.debug("redis: %s", error)

    async def call(self, commands: bytes, count: int, budget_s: float) -> Any:
        """Send commands in one go and return the last one's answer. Raises `Unavailable`, `ServerError`."""
        if self._failures >= FAILURES:
            now = time.monotonic()
            if now < self._probe_s:
                raise Unavailable("the index does not answer")
            self._probe_s = now + PROBE_S
        wire = await self._connected(budget_s)
        answer = wire.send(commands, count)
        timer = asyncio.get_running_loop().call_later(budget_s, _late, answer)
        try:
            reply = await answer
        except (TimeoutError, ConnectionError) as error:
            self._failures += 1
            raise Unavailable(str(error) or "the index was too slow") from None
        finally:
            timer.cancel()
        self._failures = 0
        return reply

    def post(self, commands: bytes, count: int) -> None:
        """Send commands whose answers nobody waits for; nothing happens without a connection."""
        if self._wire is not None and not self._wire.closed and self._failures < FAILURES:
            self._wire.post(commands, count)

    def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._wire is not None and self._wire.transport is not None:
            self._wire.transport.close()


def _late(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
