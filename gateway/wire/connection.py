"""One connection to an engine: a request goes out, its answer comes in."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from gateway.wire.deadline import Deadline
from gateway.wire.errors import ClosedEarly, Stage, TimedOut, WireError
from gateway.wire.incoming import Incoming

_SMALL = 16 * 1024
"""A body up to this is copied behind its head: cheaper than telling the kernel of two pieces."""

_SLICE = 256 * 1024
"""A body above this is handed to the transport in slices, so that no more than one waits in its buffers."""


Sink = Callable[[bytes], bool]
"""Takes a piece of a body; False: it has this one and wants no more for now. It does not raise."""


class Connection(asyncio.Protocol):
    """Carries one exchange after the other; whoever holds it is its only user.

    `send` starts an exchange, `more` waits for body bytes, `take` takes them, `pour` hands them to a sink as they come,
    `rest` ends it. What has arrived and was
    not taken is in `pieces`, at most `buffer_bytes` and one read of the transport (uvloop: 256 KiB): then reading stops
    until it is taken, and the engine is held back by TCP. Failures are kept in `fault`, never thrown into the loop.
    """

    __slots__ = (
        "_buffer_bytes",
        "_buffered",
        "_deadline",
        "_idle_s",
        "_lost",
        "_reading",
        "_sink",
        "_transport",
        "_unsent",
        "_waiter",
        "_writing",
        "fault",
        "incoming",
        "loop",
        "pieces",
        "stopped",
        "used",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lost: Callable[["Connection"], None],
        *,
        head_bytes: int,
        buffer_bytes: int,
    ) -> None:
        self.loop = loop
        self.incoming = Incoming(head_bytes)
        self.pieces = self.incoming.pieces
        self.fault: WireError | None = None
        self.used = False  # an exchange was carried before the present one
        self._lost = lost
        self._buffer_bytes = buffer_bytes
        self._transport: asyncio.Transport | None = None
        self._deadline: Deadline | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unsent: memoryview | None = None  # of a large body
        self._writing = True  # the transport takes more
        self._reading = True
        self._buffered = 0  # bytes received and not taken, framing included
        self._sink: Sink | None = None
        self._idle_s = 0.0
        self.stopped = False  # the sink wanted no more

    # The exchange, as its user sees it.

    @property
    def usable(self) -> bool:
        """True if the peer is there, as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def stale(self) -> bool:
        """True if a connection that had served before was closed without a byte of an answer to this request."""
        return self.used and isinstance(self.fault, ClosedEarly) and not self.fault.answered

    def send(self, head: bytes, body: bytes, *, bodyless: bool, deadline: float) -> asyncio.Future[None]:
        """Send a request on a `usable` connection.

        The future is done when the answer's head is here or there is a `fault`; that `deadline` (loop time) has passed
        is one. `bodyless`: the method is HEAD.
        """
        assert self._transport is not None and self._deadline is not None
        self.incoming.expect(bodyless=bodyless)
        if len(body) <= _SMALL:
            self._transport.write(head + body)
        elif len(body) <= _SLICE:
            self._transport.writelines([head, body])
        else:
            view = memoryview(body)
            self._unsent = view[_SLICE:]
            self._transport.writelines([head, view[:_SLICE]])
            self._send_more()
        self._deadline.set(deadline)
        self._waiter = self.loop.create_future()
        return self._waiter

    def more(self, idle_s: float) -> asyncio.Future[None]:
        """The future is done when `pieces` has some, or the answer is complete, or there is a `fault`."""
        if self._waiter is not None:
            raise RuntimeError("another task waits for this answer already: one reader at a time")
        waiter = self.loop.create_future()
        if self.fault is not None or self._deadline is None:
            waiter.set_result(None)
            return waiter
        self._deadline.set(self.loop.time() + idle_s)
        self._waiter = waiter
        return waiter

    def pour(self, sink: Sink, idle_s: float) -> asyncio.Future[None]:
        """Hand to `sink` what arrives, as it arrives. The future is done when it wants no more (`stopped`), the answer
        is complete, or there is a `fault`; the last piece may be left in `pieces`."""
        self.stopped = False
        self._idle_s = idle_s
        waiter = self.more(idle_s)
        self._sink = sink
        return waiter

    def take(self) -> bytes:
        """All that has arrived, in one piece (`pieces` must not be empty)."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        if not self._reading:
            self._resume()
        return data

    def surrender(self) -> WireError:
        """The fault, to be raised; it is kept no longer, which spares the collector a cycle."""
        fault, self.fault = self.fault, None
        return fault or ClosedEarly("the connection was given up", self._stage(), answered=self.incoming.answered)

    def rest(self) -> bool:
        """End the exchange. True if the connection can carry another."""
        self._sink = None
        self.pieces.clear()
        self._buffered = 0
        done = self.incoming.complete and self.incoming.keep_alive
        if done and self._unsent is None and self._writing and self.usable:
            self.used = True
            if not self._reading:
                self._resume()
            return True
        return False

    def abort(self) -> None:
        """Close the socket now, whatever is in flight."""
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self._deadline = Deadline(self.loop, self._due)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        incoming = self.incoming
        if self._sink is not None and (start := incoming.alone(data)):
            self._hand(data[start:-2])
            return
        was_complete, was_in_head = incoming.complete, incoming.in_head
        if was_complete or self.fault is not None:
            self.abort()  # nothing was asked
            return
        if (fault := incoming.feed(data)) is not None:
            self._fail(fault)
            return
        if incoming.in_head:
            return
        if self.pieces:
            if self._sink is not None:
                self._hand(self.take())
                return
            self._buffered += len(data)
            if self._buffered >= self._buffer_bytes and self._reading and not incoming.complete and self.usable:
                self._reading = False
                self._transport.pause_reading()  # type: ignore[union-attr]
        elif not (was_in_head or incoming.complete):
            return  # framing: nobody needs to know
        if self._waiter is not None:
            self._wake()

    def eof_received(self) -> bool | None:
        self.incoming.end()
        return None  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.incoming.complete and self.fault is None:
            why = f": {exc}" if exc is not None else ""
            self.fault = ClosedEarly(
                f"closed before the answer was complete{why}", self._stage(), answered=self.incoming.answered
            )
        self.incoming.close()
        self._transport = None
        self._unsent = None
        if self._deadline is not None:
            self._deadline.stop()
            self._deadline = None
        self._wake()
        self._lost(self)

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        if self._unsent is not None:
            self._send_more()

    # Ours.

    def _hand(self, piece: bytes) -> None:
        """Hand a piece to the sink."""
        if not self._sink(piece):  # type: ignore[misc]  # there is one
            self.stopped = True
        elif not self.incoming.complete:
            if self._deadline is not None:
                self._deadline.set(self.loop.time() + self._idle_s)
            return
        self._wake()

    def _stage(self) -> Stage:
        stage = self.incoming.stage
        return "send" if stage == "first_byte" and not (self._writing and self._unsent is None) else stage

    def _send_more(self) -> None:
        while self._unsent is not None and self._writing and self.usable:
            part, rest = self._unsent[:_SLICE], self._unsent[_SLICE:]
            self._unsent = rest if len(rest) else None
            self._transport.write(part)  # type: ignore[union-attr]

    def _resume(self) -> None:
        self._reading = True
        if self.usable:
            self._transport.resume_reading()  # type: ignore[union-attr]

    def _due(self) -> None:
        if self._waiter is not None:
            stage = self._stage()
            self._fail(TimedOut(f"deadline passed at {stage}", stage, answered=self.incoming.answered))

    def _fail(self, fault: WireError) -> None:
        self.fault = fault
        self.abort()
        self._wake()

    def _wake(self) -> None:
        self._sink = None
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
