"""The clock that every request has: whatever it waits for, at its deadline it ends, and it is said where it was.

A net under the deadlines of the single steps. One timer looks at all requests once a second.
"""

import asyncio
import logging
import time
from types import TracebackType

from gateway.dispatch.exchange import Exchange
from gateway.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

LOOK_S = 1.0


class Overdue(Exception):
    """The request has outlived its deadline."""


class Watchdog:
    """Cancels what is overdue."""

    def __init__(self, metrics: Metrics, look_s: float = LOOK_S) -> None:
        self._metrics = metrics
        self._look_s = look_s
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Requests under way."""
        return len(self._watched)

    def watch(self, x: Exchange) -> "Watched":
        """Use as a context manager around all that is done for a request; raises `Overdue` out of it."""
        return Watched(self, x)

    def begin(self, watched: "Watched") -> None:
        self._watched.add(watched)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def end(self, watched: "Watched") -> None:
        self._watched.discard(watched)

    def _look(self) -> None:
        now = time.perf_counter()
        for watched in [watched for watched in self._watched if watched.x.deadline <= now]:
            self._watched.discard(watched)
            self._metrics.overdue(watched.bark()).inc()
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look) if self._watched else None


class Watched:
    """One request under the watchdog's eye."""

    __slots__ = ("_dog", "_fired", "_task", "x")

    def __init__(self, dog: Watchdog, x: Exchange) -> None:
        self._dog = dog
        self.x = x
        self._fired = False

    def bark(self) -> str:
        """End it; returns the step it was in."""
        self._fired = True
        x, placement = self.x, self.x.placement
        where = f"prefill {placement.prefill}, decode {placement.decode}" if placement else "not placed"
        log.warning(
            "request %s: overdue after %.1f s at step %s (%s)",
            x.engine_id.decode(),
            time.perf_counter() - x.started,
            x.step,
            where,
        )
        self._task.cancel()
        return x.step

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._dog.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dog.end(self)
        if self._fired and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise Overdue from None
