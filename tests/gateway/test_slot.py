"""When a policy is given up: what is too much for a slot, and how a watchdog ends what does not end."""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.routing.entry import NOBODY, Entry, Labels, Stamp
from gateway.routing.slot import FAULTS, IN_A_ROW, PROBATION, Slot
from gateway.routing.watchdog import Overlong, Raised, Watchdog
from gateway.telemetry.metrics import Metrics
from policies.contract import Engine, Fleet, Placement, Request

# The slot: what is too much.

FLEET = Fleet(engines=(Engine(name="d", role="decode"),))
REQUEST = Request(model="m", prompt_tokens=1)


def place(request: Request, fleet: Fleet) -> Placement:
    return Placement(decode="d", reason="only one")


def slot() -> tuple[Slot, Entry, Entry]:
    base = Entry("base", "base", place)
    mine = Entry("mine", "mine", place, True, Path("mine.py"), Stamp(1, "abc"))
    made = Slot("live", base, NOBODY, Metrics())
    made.swap(mine)
    return made, base, mine


def test_a_new_policy_may_fail_now_and_then_but_not_often() -> None:
    held, base, mine = slot()
    for _ in range(FAULTS):
        held.judge(mine, "raised")
        held.judge(mine, "")
    assert held.entry is mine
    held.judge(mine, "overrun")
    assert held.entry is base
    assert "6 failures in 11 decisions, the last: overrun" in held.warnings()[0]
    held.judge(mine, "raised")  # of a decision that began before
    assert held.entry is base


def test_after_its_probation_only_failures_in_a_row_count() -> None:
    held, base, mine = slot()
    for _ in range(PROBATION):
        held.judge(mine, "")
    for _ in range(50):
        held.judge(mine, "raised")
        held.judge(mine, "")
    assert held.entry is mine
    for _ in range(IN_A_ROW):
        held.judge(mine, "raised")
    assert held.entry is base


def test_the_one_before_comes_back_and_then_the_one_of_the_settings() -> None:
    held, base, mine = slot()
    other = Entry("other", "other", place, True, Path("other.py"), Stamp(2, "def"))
    held.swap(other)
    for expected in (mine, base):
        for _ in range(IN_A_ROW):
            held.judge(held.entry, "raised")
        assert held.entry is expected


def test_names_in_metrics_are_bounded() -> None:
    labels = Labels(3)
    assert [labels.of(f"n{number}") for number in (0, 1, 2, 3, 0)] == ["n0", "n1", "n2", "other", "n0"]


# The watchdog: whatever a decision does, it ends, and nothing is raised anywhere else.


@contextmanager
def watchdog(limit_s: float) -> Iterator[Watchdog]:
    made = Watchdog(limit_s)
    try:
        yield made
    finally:
        made.close()


def forever(request: Request, fleet: Fleet) -> None:
    while True:
        pass


def keeps_exceptions(request: Request, fleet: Fleet) -> None:
    while True:
        try:
            forever(request, fleet)
        except Exception:
            continue


def keeps_everything(request: Request, fleet: Fleet) -> None:
    while True:
        try:
            for _ in range(1000):
                pass
        except BaseException:
            pass


def exits(request: Request, fleet: Fleet) -> None:
    raise SystemExit(2)


@pytest.mark.parametrize("endless", [forever, keeps_exceptions, keeps_everything])
def test_a_decision_without_end_is_ended(endless: Callable[[Request, Fleet], object]) -> None:
    with watchdog(0.01) as dog:
        for _ in range(3):
            with pytest.raises(Overlong, match="within 10 ms"):
                dog.run(endless, REQUEST, FLEET)
        assert dog.run(place, REQUEST, FLEET) == place(REQUEST, FLEET)


def test_what_would_end_the_process_does_not() -> None:
    with watchdog(1.0) as dog, pytest.raises(Raised, match="SystemExit: 2"):
        dog.run(exits, REQUEST, FLEET)


def test_decisions_that_end_at_the_limit_hurt_nobody_else() -> None:
    """Thousands that end just when they would be ended: each returns or is stopped, nothing is raised outside."""
    chance = random.Random(4)

    def near(request: Request, fleet: Fleet) -> int:
        end = time.perf_counter() + chance.uniform(0.0003, 0.0008)
        while time.perf_counter() < end:
            pass
        return 7

    ended = returned = 0
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        with watchdog(0.0005) as dog:
            for _ in range(3000):
                try:
                    assert dog.run(near, REQUEST, FLEET) == 7
                    returned += 1
                except Overlong:
                    ended += 1
                for number in range(20):
                    str(number)
    finally:
        sys.setswitchinterval(before)
    assert ended + returned == 3000
    assert returned
