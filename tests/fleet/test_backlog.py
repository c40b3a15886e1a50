"""Queues: an engine that works as fast as foretold is neither late nor early, however long its queue is."""

import random
import time
from heapq import heappop, heappush

import pytest

from engines.fleet import Role
from gateway.fleet.backlog import Backlog
from gateway.fleet.booking import Booking
from gateway.fleet.engine import Engine
from gateway.fleet.pace import OVERHEAD_S, Pace
from gateway.index.contract import InFlight
from policies.contract import ASSUMED


class Others:
    """A request of which nothing is cached, where other gateways have that in flight."""

    bound = ""

    def __init__(self, load: InFlight) -> None:
        self.load = load

    def others(self, url: str) -> InFlight | None:
        return self.load

    def of(self, url: str) -> tuple[int, int, InFlight | None]:
        return 0, 0, self.load


class Busy:
    """An engine that serves prompts first come, first served, and the gateways before it; time is handed in."""

    def __init__(self, gateways: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.free_s = 100.0
        self.slow = 1.0
        self.lateness: list[float] = []
        """As seen by the gateway whose prompt was done, each time."""
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self._seen = [Engine("p", "http://p", Role.PREFILL, pace=Pace(clock=lambda: self.now)) for _ in range(gateways)]
        self._target = Engine("d", "http://d", Role.DECODE)
        self._ends: list[tuple[float, int, Engine, Booking, int, float]] = []
        self._sent = 0
        self._pick = random.Random(1)

    def prompts(self, count: int) -> None:
        """Short and long ones; the engine works most of the time."""
        for _ in range(count):
            self._until(self.now + self._pick.expovariate(0.85 / (self.slow * ASSUMED.prefill_s(12_000))))
            self._sent += 1
            new = int(min(self._pick.lognormvariate(8.8, 1.0), 90_000))
            engine = self._pick.choice(self._seen)
            theirs = [other.in_flight for other in self._seen if other is not engine]
            engine.view(Others(InFlight(*[sum(each) for each in zip(*theirs, strict=True)])), "prefill")
            booking = Booking(engine, self._target, new, new)
            self.free_s = max(self.now + OVERHEAD_S, self.free_s) + self.slow * ASSUMED.prefill_s(new)
            heappush(self._ends, (self.free_s, self._sent, engine, booking, new, self.now))

    def _until(self, when_s: float) -> None:
        while self._ends and self._ends[0][0] <= when_s:
            self.now, _, engine, booking, new, sent_s = heappop(self._ends)
            booking.release()
            engine.pace.prefilled(new, 0, booking.waits_s, self.now - sent_s, 0, booking.alone)
            self.lateness.append(engine.pace.lateness)
        self.now = when_s


@pytest.mark.parametrize("gateways", [1, 2, 4])
def test_a_queue_says_nothing_of_speed(gateways: int, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(gateways, monkeypatch)
    busy.prompts(1200)
    wrong = [late for late in busy.lateness if late != 1.0]
    assert len(wrong) <= 0.02 * len(busy.lateness) * (gateways > 1), "what others compute now is known about only"


@pytest.mark.parametrize("gateways", [1, 4])
def test_a_slow_engine_is_seen_through_its_queue(gateways: int, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(gateways, monkeypatch)
    busy.prompts(300)
    busy.slow = 5.0
    done = len(busy.lateness)
    busy.prompts(20 * gateways)
    assert max(busy.lateness[done:]) > 3.0


def test_what_is_done_of_a_backlog_is_of_the_oldest() -> None:
    backlog = Backlog()
    assert (bool(backlog), backlog.done_s(9.0)) == (False, 0.0)
    backlog.join("long", 4.0, starts_s=10.5)
    backlog.join("short", 1.0, starts_s=11.0)
    assert [backlog.done_s(now_s) for now_s in (10.0, 11.0, 99.0)] == [0.0, 0.5, 4.0]
    assert backlog.done_s(12.5, lateness=4.0) == 0.5
    backlog.leave("short", 12.0)
    assert backlog.done_s(12.5) == 2.0, "it was not the one that is computed"
    backlog.join("next", 1.0, starts_s=13.0)
    backlog.leave("long", 15.0)
    assert backlog.done_s(15.5) == 0.5
    backlog.leave("next", 16.0)
    backlog.leave("next", 17.0)
    assert not backlog


def test_what_an_engine_spends_on_prefill_is_counted_as_it_is_done() -> None:
    backlog = Backlog()
    backlog.join("long", 4.0, starts_s=10.0)
    backlog.join("given up", 9.0, starts_s=10.0)
    assert [backlog.spent_s(now_s) for now_s in (10.0, 11.0, 99.0)] == [0.0, 1.0, 4.0]
    backlog.leave("given up", 12.0)
    assert backlog.spent_s(12.0) == 2.0, "nothing of it was computed"
    backlog.leave("long", 13.0)
    assert backlog.spent_s(20.0) == 3.0, "it was done earlier than foretold"


def test_alone_is_who_met_nobody_until_it_was_done() -> None:
    engine, decode = Engine("p", "http://p", Role.PREFILL), Engine("d", "http://d", Role.DECODE)
    first, second = Booking(engine, decode, 1000, 1000), Booking(engine, decode, 1000, 1000)
    first.prefilled()
    third = Booking(engine, decode, 1000, 1000)
    second.release()
    third.release()
    fourth = Booking(engine, decode, 1000, 1000)
    fourth.prefilled()
    assert [booking.alone for booking in (first, second, third, fourth)] == [False, False, False, True]
    first.release()
    fourth.release()
    engine.view(Others(InFlight(prefill_requests=1, prefill_tokens=1000, prefill_us=10_000)), "prefill")
    with Booking(engine, decode, 1000, 1000) as fifth:
        assert fifth.waits_s == pytest.approx(0.005), "it is half done, on average"
    assert not fifth.alone
