"""One deadline per connection, moved on every chunk, at the price of a comparison."""

import asyncio
from collections.abc import Callable
from math import inf

_RESOLUTION_S = 0.001
"""uvloop's clock ticks in milliseconds; a timer may fire that much before its time."""


class Deadline:
    """Calls `due` when the moment last set has passed.

    A deadline that moves with every chunk of a stream is almost always moved later. So the loop's timer is not moved
    with it: it stays armed for the earliest moment set since it last fired, and when it fires too soon it is armed
    again for what is left. A stream with an idle limit of S seconds costs one timer per S seconds however many chunks
    it has, and a deadline is exact to the loop's clock, which a shared ticker would not be; nor is there anything to
    scan. `due` must bear being called when nobody waits any more: forgetting a deadline costs nothing either.
    """

    __slots__ = ("_armed_for", "_at", "_due", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[], None]) -> None:
        self._loop = loop
        self._due: Callable[[], None] | None = due
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = inf
        self._at = inf

    def set(self, at: float) -> None:
        """Be due at `at` (loop time, s) and not before; `inf` is never."""
        self._at = at
        if at < self._armed_for:
            self._arm(at)

    def stop(self) -> None:
        """Never be due again, and let go of `due`."""
        self._due = None
        self._armed_for = -inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, at: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = at
        self._handle = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._armed_for = inf
        if self._at > self._loop.time() + _RESOLUTION_S:
            self.set(self._at)
        elif self._due is not None:
            self._due()
