"""The supervisor's control socket: one request as a line of JSON, answered by lines of JSON; and its client."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engines.checks import CannotStart

log = logging.getLogger(__name__)

LINE_BYTES = 1 << 20
PATH_BYTES = 107
"""The longest path of a unix socket."""

Say = Callable[[str], None]
Answer = Callable[[dict[str, Any], Say], Awaitable[dict[str, Any]]]
"""Does what a request asks for, says how far it is, and returns the last line. Raises `Refused`."""


class Refused(Exception):
    """A request cannot be done; the message says why."""


class NoSupervisor(Exception):
    """Nobody listens; the message names the mend."""


class Control:
    """Listens on `path`, which only this user may open."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises `CannotStart`."""
        if len(str(self._path).encode()) > PATH_BYTES:
            raise CannotStart(f"{self._path}: too long for a socket: set BATON_STATE_DIR to a shorter folder")
        self._path.unlink(missing_ok=True)  # of one that was killed; the folder's lock says that it is gone
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=LINE_BYTES)
        self._path.chmod(0o600)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

        def write(line: dict[str, Any]) -> None:
            writer.write(msgspec.json.encode(line) + b"\n")

        try:
            request = msgspec.json.decode(await reader.readline(), type=dict[str, Any])
            write({"done": await self._answer(request, lambda text: write({"say": text}))})
        except Refused as error:
            write({"error": str(error)})
        except (msgspec.DecodeError, ValueError) as error:
            write({"error": f"not a request: {error}"})
        finally:
            with suppress(ConnectionError):
                await writer.drain()
            writer.close()

    async def close(self) -> None:
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)


async def ask(path: Path, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Lines of the answer: `say` while it goes on, `done` in the end. Raises `Refused`, `NoSupervisor`."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES)
    except OSError:
        raise NoSupervisor(
            f"no supervisor answers on {path}: start one (`baton engines up`, `baton up`), "
            "or set BATON_STATE_DIR to its folder"
        ) from None
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        while line := await reader.readline():
            told = msgspec.json.decode(line, type=dict[str, Any])
            if "error" in told:
                raise Refused(told["error"])
            yield told
            if "done" in told:
                return
        raise NoSupervisor("the supervisor ended meanwhile")
    finally:
        writer.close()
