"""The other end: a server whose script decides about every byte, and sees what becomes of its connections."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway.wire import Pool

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEADERS = [(b"content-type", b"application/json")]


@dataclass
class Side:
    """One accepted connection, as its script sees it."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self) -> tuple[bytes, bytes] | None:
        """The next request (head, body), or None when the client has closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            size = 0
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    size = int(value)
            body = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.requests.append((head, body))
        return head, body

    async def send(self, data: bytes) -> None:
        """Write; a client that has gone is no error here."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def eof(self) -> None:
        """Wait until the client closes."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Side], Awaitable[None]]


class Peer:
    """Runs a script per connection; when it returns the connection is closed."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sides: list[Side] = []
        self.open = 0
        self.url = ""
        self.changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, *, path: str = "", tls: ssl.SSLContext | None = None) -> None:
        if path:
            self._server = await asyncio.start_unix_server(self._serve, path)
            self.url = f"unix://{path}"
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls, limit=1 << 20)
            port = self._server.sockets[0].getsockname()[1]
            self.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def accepted(self, count: int) -> None:
        """Wait for `count` connections in all."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.sides) >= count)

    async def emptied(self, count: int = 0) -> None:
        """Wait until only `count` connections are open."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.open <= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        side = Side(len(self.sides), reader, writer)
        self.sides.append(side)
        self.open += 1
        async with self.changed:
            self.changed.notify_all()
        try:
            await self.script(side)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self.open -= 1
            side.gone.set()
            async with self.changed:
                self.changed.notify_all()


def answering(*answers: bytes) -> Script:
    """Answers a connection's requests with `answers` in turn (the last one for ever), until the client goes."""

    async def script(side: Side) -> None:
        number = 0
        while await side.request() is not None:
            await side.send(answers[min(number, len(answers) - 1)])
            number += 1

    return script


def once(answer: bytes) -> Script:
    """Answers one request with these bytes and closes."""

    async def script(side: Side) -> None:
        if await side.request() is not None:
            await side.send(answer)

    return script


async def silent(side: Side) -> None:
    """Takes the request, never answers, stays until the client goes."""
    if await side.request() is not None:
        await side.eof()


async def get(pool: Pool, target: bytes = b"/", *, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
    """One whole exchange: status and body."""
    answer = await pool.request(method, target, HEADERS, body, first_byte_s=5)
    try:
        return answer.status, await answer.read(1 << 30, 5)
    finally:
        answer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    while not condition():  # what is awaited has no event: it is the state of a pool
        await asyncio.sleep(0)


async def closed(pool: Pool) -> None:
    """Wait until the transports of a closed pool are gone."""
    await until(lambda: not pool._open)
