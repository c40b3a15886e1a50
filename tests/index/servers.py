"""Real servers for tests: Redis 7.0 where it is installed, Valkey from its wheel; and a bad connection to them."""

import asyncio
import os
import shutil
import tempfile

import pytest

from gateway.index.embedded import Embedded

KINDS = ("redis", "valkey")


def server(kind: str, *more: str) -> Embedded:
    """A server, not started yet; skips the test on a machine without Redis, which CI always has."""
    if kind == "valkey":
        return Embedded("", *more)
    found = shutil.which("redis-server")
    if found is None:
        assert not os.environ.get("CI"), "CI must have redis-server"
        pytest.skip("no redis-server here")
    return Embedded(found, *more)


class Lossy:
    """Stands between a client and a server; loses replies after the server has done its work."""

    def __init__(self, target: str) -> None:
        self._target = target.removeprefix("unix://")
        self._folder = tempfile.TemporaryDirectory(prefix="baton-")
        self._socket = f"{self._folder.name}/lossy"
        self.url = f"unix://{self._socket}"
        self._lose = 0
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._socket)

    def lose_replies(self, count: int) -> None:
        """The next replies get lost, and their connections with them."""
        self._lose = count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        up_reader, up_writer = await asyncio.open_unix_connection(self._target)

        async def requests() -> None:
            while data := await reader.read(1 << 20):
                up_writer.write(data)
            up_writer.close()

        forward = asyncio.create_task(requests())
        try:
            while data := await up_reader.read(1 << 20):
                if self._lose:
                    self._lose -= 1
                    break
                writer.write(data)
        finally:
            forward.cancel()
            up_writer.close()
            writer.close()

    async def close(self) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self._folder.cleanup()
