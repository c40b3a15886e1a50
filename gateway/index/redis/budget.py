"""How long answers are waited for."""

import asyncio
from collections import deque
from typing import Any

_TICK_S = 0.0005
"""uvloop's clock ticks in milliseconds."""


class Budget:
    """Fails answers that take longer than `budget_s`: one timer for all of them, each one its own costs too much."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._armed = False

    def watch(self, answer: asyncio.Future[Any]) -> None:
        """It has so long from now; then it is a `TimeoutError`."""
        loop = answer.get_loop()
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        waiting.append((loop.time() + self._budget_s, answer))
        if not self._armed:
            self._armed = True
            loop.call_later(self._budget_s, self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting
        now = loop.time() + _TICK_S
        while waiting and (waiting[0][0] <= now or waiting[0][1].done()):
            answer = waiting.popleft()[1]
            if not answer.done():
                answer.set_exception(TimeoutError())
        self._armed = bool(waiting)
        if waiting:
            loop.call_at(waiting[0][0], self._fire, loop)
