"""Lets a burst in one by one, so that who came first is on its way before the last is even read.

Calls that arrive together would otherwise go through each step together: all are read, then all looked up, then all
sent on, and the first waits for the last. With few new calls per step of the event loop, whatever is ready of those
before it goes first. Nothing waits while the loop has nothing else to do, and nothing limits how many are under way.
"""

import asyncio
from collections import deque
from collections.abc import Callable

STEP = 2
"""Calls let in by one step. One is best for the first of a burst; more spare steps where the loop is never idle."""


class Turnstile:
    """Of one event loop."""

    __slots__ = ("_loop", "_turning", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._turning = False

    def enter(self, start: Callable[[], None]) -> None:
        """Call `start` now, or in a later step of the loop if another went in this one."""
        if self._turning:
            self._waiting.append(start)
        else:
            self._turning = True
            self._loop.call_soon(self._turn)
            start()

    def _turn(self) -> None:
        waiting = self._waiting
        if not waiting:
            self._turning = False
            return
        self._loop.call_soon(self._turn)
        for _ in range(min(len(waiting), STEP)):
            waiting.popleft()()
