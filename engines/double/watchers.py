"""Tests that wait for the counters to say something."""

import asyncio
from collections.abc import Callable

from engines.double.stats import Stats

Condition = Callable[[Stats], bool]


class Watchers:
    """Conditions on the counters, and who waits for each."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._waiting: list[tuple[Condition, asyncio.Future[None]]] = []
        self._end: Exception | None = None

    async def until(self, condition: Condition) -> None:
        """Wait until `condition` holds; it is tried now and at every `look`. Raises what `close` was given."""
        if condition(self._stats):
            return
        if self._end is not None:
            raise self._end
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        await future

    def look(self) -> None:
        """The counters have changed."""
        if not self._waiting:
            return
        waiting: list[tuple[Condition, asyncio.Future[None]]] = []
        for condition, future in self._waiting:
            if future.done():
                continue
            if condition(self._stats):
                future.set_result(None)
            else:
                waiting.append((condition, future))
        self._waiting = waiting

    def close(self, error: Exception) -> None:
        """The counters will not change any more: whoever waits, now or later, gets `error`."""
        self._end = error
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting = []
