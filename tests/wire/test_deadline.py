"""A deadline that moves with every chunk costs no timer for it."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway.wire.deadline import Deadline


class Clock:
    """A loop that is nothing but its clock and its timers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.armed = 0
        self.timers: list[tuple[float, Callable[[], None], asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.armed += 1
        handle = asyncio.TimerHandle(when, callback, (), cast(Any, self))
        self.timers.append((when, callback, handle))
        return handle

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def advance(self, to: float) -> None:
        while ready := [timer for timer in self.timers if timer[0] <= to]:
            first = min(ready, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            if not first[2].cancelled():
                first[1]()
        self.now = to


def deadline() -> tuple[Clock, Deadline, list[float]]:
    clock, due = Clock(), list[float]()
    return clock, Deadline(cast(asyncio.AbstractEventLoop, clock), lambda: due.append(clock.now)), due


async def test_a_stream_costs_one_timer_per_idle_limit() -> None:
    clock, limit, due = deadline()
    for step in range(10_000):  # 100 s of a chunk every 10 ms, idle limit 10 s
        clock.advance(step * 0.01)
        limit.set(clock.now + 10)
    assert clock.armed <= 11
    assert due == []
    clock.advance(300)
    assert due == pytest.approx([109.99])


async def test_an_earlier_deadline_is_kept_too() -> None:
    clock, limit, due = deadline()
    limit.set(100)
    limit.set(1)
    clock.advance(200)
    assert due == [1]


async def test_it_is_due_once_and_can_be_set_again() -> None:
    clock, limit, due = deadline()
    limit.set(1)
    clock.advance(50)
    limit.set(60)
    clock.advance(100)
    assert due == [1, 60]


async def test_stopped_is_never() -> None:
    clock, limit, due = deadline()
    limit.set(1)
    limit.stop()
    limit.set(2)
    clock.advance(10)
    assert due == []
