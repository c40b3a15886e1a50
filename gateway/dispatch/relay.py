"""Moves an engine's stream to the client as it comes.

The only thing done per piece is to hold back an unfinished event, so that the client sees whole events and an error can
follow at any time; several events that arrived together leave together.
"""

import time
from collections.abc import Awaitable, Callable

from gateway.wire.answer import Answer
from gateway.wire.errors import WireError

Send = Callable[[bytes], Awaitable[None]]

HELD_LIMIT = 1 << 20
"""An event longer than this (bytes) goes out in pieces."""


class Cut(Exception):
    """The engine's stream ended before its end; what was delivered ends with a whole event."""


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


async def relay(answer: Answer, first: bytes, send: Send, idle_s: float, tally: Tally) -> None:
    """Send the whole stream; `first` is its first piece. Raises `Cut`."""
    held = b""
    piece = first
    while piece:
        if held:
            piece = held + piece
            held = b""
        if not piece.endswith(b"\n\n"):
            end = piece.rfind(b"\n\n") + 2
            if end > 1 or len(piece) < HELD_LIMIT:
                piece, held = (piece[:end], piece[end:]) if end > 1 else (b"", piece)
        if piece:
            tally.events += piece.count(b"\n\n")
            await send(piece)
        try:
            piece = await answer.chunk(idle_s)
        except WireError as error:
            raise Cut(str(error)) from error
    if held:
        await send(held)
    tally.last_s = time.perf_counter()
