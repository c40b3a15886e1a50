"""The answer of an engine, read as it comes."""

import contextlib
import warnings
from collections.abc import Callable

from gateway.wire.connection import Connection, Sink
from gateway.wire.errors import BadAnswer, ClosedEarly


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
        connection = self._connection
        if connection is None:
            if self._ended:
                return b""
            raise ClosedEarly("the answer was closed", "body", answered=True)
        if connection.pieces:
            return connection.take()
        if not connection.incoming.complete:
            try:
                await connection.more(idle_s)
            except BaseException:
                self.close()
                raise
            if self._connection is None:  # closed while we waited: the connection is not ours any more
                raise ClosedEarly("the answer was closed", "body", answered=True)
            if connection.pieces:
                return connection.take()
            if not connection.incoming.complete:
                self.close()
                raise connection.surrender()
        self._ended = True
        self.close()
        return b""

    async def pour(self, sink: Sink, idle_s: float) -> bool:
        """Hand the body to `sink` as it arrives, without a step of the event loop in between.

        Returns True when `sink` wants no more for now: pour again when it does, what comes meanwhile is kept, bounded.
        Returns False at the end of a complete body. Raises what `chunk` raises.
        """
        connection = self._connection
        if connection is None:
            if self._ended:
                return False
            raise ClosedEarly("the answer was closed", "body", answered=True)
        if connection.pieces and not sink(connection.take()):
            return True
        if not connection.incoming.complete:
            try:
                await connection.pour(sink, idle_s)
            except BaseException:
                self.close()
                raise
            if self._connection is None:
                raise ClosedEarly("the answer was closed", "body", answered=True)
            if connection.stopped:
                return True
            if connection.pieces and not sink(connection.take()):
                return True
            if not connection.incoming.complete:
                self.close()
                raise connection.surrender()
        self._ended = True
        self.close()
        return False

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
