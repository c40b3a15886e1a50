"""A door in front of an engine: holds hand-overs back on their way, as a slow network would."""

import asyncio
from contextlib import suppress
from typing import Self

HAND_OVER = b"remote_block_ids"
"""In the body of every request that carries transfer parameters."""


class Door:
    """Passes TCP on from a free port to `port`; while shut, requests that carry transfer parameters wait."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.held = 0
        """Hand-overs that had to wait so far."""

    async def __aenter__(self) -> "Door":
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        way: Way | None = None
        with suppress(OSError, asyncio.CancelledError):  # cancelled only when all is over
            while data := await reader.read(1 << 20):
                if HAND_OVER in data and not self._open.is_set():
                    self.held += 1
                    if way is not None:
                        way.close()  # the engine would soon, seeing nothing come
                        way = None
                    await self._open.wait()
                if way is None:
                    way = await Way.to(self._target, writer)
                way.write(data)
            if way is not None:
                way.finish()
                await way.copying
        if way is not None:
            way.close()
        writer.close()


class Way:
    """A connection to the engine, what it answers going to the client."""

    def __init__(self, outward: asyncio.StreamWriter, copying: asyncio.Task[None]) -> None:
        self._outward = outward
        self.copying = copying

    @classmethod
    async def to(cls, port: int, client: asyncio.StreamWriter) -> Self:
        inward, outward = await asyncio.open_connection("127.0.0.1", port)
        return cls(outward, asyncio.create_task(_copy(inward, client)))

    def write(self, data: bytes) -> None:
        self._outward.write(data)

    def finish(self) -> None:
        """The client has gone."""
        self._outward.close()

    def close(self) -> None:
        self.copying.cancel()
        self._outward.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 20):
            writer.write(data)
    writer.close()
