"""Moves an engine's stream to the client as it comes.

The only thing done per piece is to hold back an unfinished event, so that the client sees whole events and an error can
follow at any time; several events that arrived together leave together.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from gateway.dispatch.failure import cause_of
from gateway.dispatch.trail import Trail
from gateway.dispatch.verdict import Cause
from gateway.settings import Settings
from gateway.wire.connection import Sink
from gateway.wire.errors import WireError


class Out(Protocol):
    """Where a stream goes."""

    def write(self, piece: bytes) -> bool:
        """Send a piece; False: wait for `drain` before the next."""
        ...

    async def drain(self) -> None: ...


class Source(Protocol):
    """Where it comes from: an answer whose head is here."""

    async def pour(self, sink: Sink, idle_s: float) -> bool: ...


HELD_LIMIT = 1 << 20
"""An event longer than this (bytes) goes out in pieces."""


class Cut(Exception):
    """The engine's stream ended before its end; what was delivered ends with a whole event."""

    def __init__(self, why: str, cause: Cause = "closed") -> None:
        super().__init__(why)
        self.cause: Cause = cause


class Stuck(Exception):
    """The client reads no more."""


class Tally:
    """What a stream amounted to."""

    __slots__ = ("events", "first_s", "last_s")

    def __init__(self) -> None:
        self.events = 0
        self.first_s = self.last_s = time.perf_counter()

    @property
    def gap_s(self) -> float | None:
        """Mean time between events, seconds; None if there were fewer than three (a role, a token, an end)."""
        return (self.last_s - self.first_s) / (self.events - 1) if self.events > 2 else None


class _Flow:
    """Passes pieces on in whole events."""

    __slots__ = ("_held", "_tally", "_write")

    limit = HELD_LIMIT

    def __init__(self, write: Callable[[bytes], bool], tally: Tally) -> None:
        self._write = write
        self._tally = tally
        self._held = b""

    def __call__(self, piece: bytes) -> bool:
        if self._held:
            piece = self._held + piece
            self._held = b""
        elif piece.find(b"\n") == len(piece) - 2 and piece.endswith(b"\n\n"):  # one event, as is usual
            self._tally.events += 1
            return self._pass(piece, 1)
        if not piece.endswith(b"\n\n"):
            end = piece.rfind(b"\n\n") + 2
            if end > 1:
                piece, self._held = piece[:end], piece[end:]
            elif len(piece) < self.limit:
                self._held = piece
                return True
        count = piece.count(b"\n\n")
        self._tally.events += count
        return self._pass(piece, count)

    def _pass(self, events: bytes, count: int) -> bool:
        return self._write(events)

    def finish(self) -> None:
        if self._held:
            self._write(self._held)


class _Followed(_Flow):
    """The same for a stream whose trail is kept."""

    __slots__ = ("_trail",)

    limit = 16 * HELD_LIMIT  # the first event brings the ids of the whole prompt

    def __init__(self, write: Callable[[bytes], bool], tally: Tally, trail: Trail) -> None:
        super().__init__(write, tally)
        self._trail = trail

    def _pass(self, events: bytes, count: int) -> bool:
        trail = self._trail
        events = trail(events, count)
        more = self._write(events) if events else True
        return more and not (trail.broken or trail.stopped)


async def drained(out: Out, within_s: float) -> None:
    """Wait until the client takes more. Raises `Stuck`."""
    try:
        async with asyncio.timeout(within_s):
            await out.drain()
    except TimeoutError:
        raise Stuck(f"the client took nothing for {within_s:g} s") from None


async def relay(
    answer: Source, first: bytes, out: Out, settings: Settings, tally: Tally, trail: Trail | None = None
) -> None:
    """Send the whole stream; `first` is its first piece. Raises `Cut` and `Stuck`."""
    flow = _Flow(out.write, tally) if trail is None else _Followed(out.write, tally, trail)
    full = not flow(first)
    while True:
        if trail is not None and trail.broken:
            raise Cut(trail.broken, "error")
        if trail is not None and trail.stopped:
            break
        if full:
            await drained(out, settings.client_timeout_s)
        try:
            full = await answer.pour(flow, settings.idle_timeout_s)
        except WireError as error:
            raise Cut(str(error), cause_of(error)) from error
        if not full:
            break
    if trail is not None and trail.broken:
        raise Cut(trail.broken, "error")
    flow.finish()
    tally.last_s = time.perf_counter()
