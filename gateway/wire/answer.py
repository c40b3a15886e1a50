"""The answer of an engine, read as it comes."""

import asyncio
import contextlib
import warnings
from collections.abc import Callable
from typing import ParamSpec

from gateway.wire.connection import Connection, Sink
from gateway.wire.errors import BadAnswer, ClosedEarly

Wait = ParamSpec("Wait")


class Answer:
    """A head that is here and a body that may still be coming. Whoever got one closes it.

    `status`: the final status. `headers`: names in lower case, values as received, in order, hop-by-hop ones included.
    """

    __slots__ = ("_connection", "_ended", "_release", "headers", "status")

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self.status = connection.incoming.status
        self.headers = connection.incoming.headers
        self._connection: Connection | None = connection
        self._release = release
        self._ended = False

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (`name` in lower case)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def chunk(self, idle_s: float) -> bytes:
        """The next bytes of the body, all that have arrived in one piece; `b""` at the end of a complete body.

        What has arrived is returned without suspending. Raises `TimedOut` when no body byte comes for `idle_s` seconds,
        `ClosedEarly` when the engine closes before the body is complete (after all that it sent was taken) or the
        answer was closed, and `BadAnswer` for broken framing. The connection is given back at the end and at any error.
        """
        connection = self._current()
        if connection is None:
            return b""
        if not (connection.pieces or connection.incoming.complete):
            await self._wait(connection.more, idle_s)
        if connection.pieces:
            return connection.take()
        self._finish(connection)
        return b""

    async def pour(self, sink: Sink, idle_s: float) -> bool:
        """Hand the body to `sink` as it arrives, without a step of the event loop in between.

        Returns True when `sink` wants no more for now: pour again when it does, what comes meanwhile is kept, bounded.
        Returns False at the end of a complete body. Raises what `chunk` raises.
        """
        connection = self._current()
        if connection is None:
            return False
        if connection.pieces and not sink(connection.take()):
            return True
        if not connection.incoming.complete:
            await self._wait(connection.pour, sink, idle_s)
            if connection.stopped or (connection.pieces and not sink(connection.take())):
                return True
        self._finish(connection)
        return False

    def _current(self) -> Connection | None:
        """The connection; None after the end of the body. Raises `ClosedEarly` if the answer was closed before."""
        if self._connection is None and not self._ended:
            raise ClosedEarly("the answer was closed", "body", answered=True)
        return self._connection

    async def _wait(self, wait: Callable[Wait, asyncio.Future[None]], *args: Wait.args, **kwargs: Wait.kwargs) -> None:
        """Wait for the connection in one of its ways; be done with it if that fails."""
        try:
            await wait(*args, **kwargs)
        except BaseException:
            self.close()
            raise
        self._current()  # closed while we waited: the connection is not ours any more

    def _finish(self, connection: Connection) -> None:
        """Nothing more comes: the end of the body, or its fault is raised."""
        if not connection.incoming.complete:
            self.close()
            raise connection.surrender()
        self._ended = True
        self.close()

    async def read(self, limit: int, idle_s: float) -> bytes:
        """The whole body. Raises what `chunk` raises, and `BadAnswer` when it has more than `limit` bytes."""
        pieces = []
        room = limit
        while piece := await self.chunk(idle_s):
            room -= len(piece)
            if room < 0:
                self.close()
                raise BadAnswer(f"body over {limit} bytes", "body", answered=True)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Be done with it: a complete answer's connection is kept for the next request where the engine allows it, any
        other is aborted at once. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._release(connection)

    def __del__(self) -> None:
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and the connection with it
                connection.loop.call_soon_threadsafe(self._release, connection)
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = "open" if self._connection is not None else "closed"
        return f"<Answer {self.status} {state}>"
