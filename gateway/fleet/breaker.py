"""Whether one engine is to be trusted with one leg: a state machine without I/O.

    closed --failures, or too slow for too long--> open --rested--> tried --good legs--> closed
                                                     ^                 |
                                                     +---- failure ----+   each time for twice as long

Who holds it decides whether it may open at all: an engine that is bad is better than none.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """`tried`: one request at a time, to see."""

    CLOSED = "closed"
    OPEN = "open"
    TRIED = "tried"


@dataclass(frozen=True, slots=True)
class Rules:
    """When a breaker opens, and for how long."""

    row: int = 5
    """So many failures one after the other."""
    share: float = 0.5
    """Or this share of the legs of the last `window_s`,"""
    least: int = 10
    """if there were so many."""
    window_s: float = 20.0
    slow_s: float = 10.0
    """Or legs that were too slow for so long, at least `row` of them."""
    rest_s: float = 5.0
    """How long it rests the first time, then twice as long each time,"""
    rest_max_s: float = 120.0
    """at most so long. After so long without another time the count starts again."""
    trials: int = 2
    """Good legs until a tried engine is trusted."""


NORMAL = Rules()


class Breaker:
    """Of one engine and one leg. `why` says in words why it is not closed."""

    __slots__ = (
        "_clock",
        "_half",
        "_marks",
        "_ready_s",
        "_row",
        "_rules",
        "_since",
        "_slow_s",
        "_slows",
        "_times",
        "_trials",
        "phase",
        "why",
    )

    def __init__(self, rules: Rules, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Another process runs there: nothing is held against it."""
        self.phase = Phase.CLOSED
        self.why = ""
        self._times = 0  # opened in a row
        self._since = 0.0  # when it closed last
        self._ready_s = 0.0
        self._trials = 0
        self._forget()

    def _forget(self) -> None:
        self._row = 0
        self._half = -2
        self._marks = [0, 0, 0, 0]  # good and bad of this half of the window, good and bad of the one before
        self._slow_s = -1.0
        self._slows = 0

    def _turn(self) -> list[int]:
        """Two half windows, the older of which is dropped when the next begins: no list of what was."""
        half = int(self._clock() / (self._rules.window_s / 2))
        if half != self._half:
            before = self._marks[:2] if half == self._half + 1 else [0, 0]
            self._marks = [0, 0, *before]
            self._half = half
        return self._marks

    def good(self) -> None:
        """A leg went well."""
        self._row = 0
        self._slows += 1
        if self.phase is Phase.CLOSED:
            self._turn()[0] += 1
        elif self.phase is Phase.TRIED:
            self._trials -= 1
            if not self._trials:
                self.phase, self.why = Phase.CLOSED, ""
                self._since = self._clock()
                self._forget()

    def bad(self) -> bool:
        """A leg failed; True if the breaker should open. One that is open has been told already."""
        if self.phase is Phase.CLOSED:
            self._row += 1
            marks = self._turn()
            marks[1] += 1
            good, bad = marks[0] + marks[2], marks[1] + marks[3]
            rules = self._rules
            return self._row >= rules.row or (good + bad >= rules.least and bad >= rules.share * (good + bad))
        return self.phase is Phase.TRIED

    def slow(self, slow: bool) -> bool:
        """Whether it is far slower than it should be now; True if the breaker should open. Ask again and again."""
        now = self._clock()
        if not slow or self.phase is not Phase.CLOSED:
            self._slow_s = -1.0
            return False
        if self._slow_s < 0.0:
            self._slow_s, self._slows = now, 0
        return now - self._slow_s >= self._rules.slow_s and self._slows >= self._rules.row

    def open(self, why: str) -> float:
        """Nothing goes there for so many seconds, which are returned."""
        now, rules = self._clock(), self._rules
        if self.phase is Phase.CLOSED and now - self._since > rules.rest_max_s:
            self._times = 0
        rest_s: float = min(rules.rest_s * 2.0 ** min(self._times, 30), rules.rest_max_s)
        self._times += 1
        self.phase, self.why = Phase.OPEN, why
        self._ready_s = now + rest_s
        self._forget()
        return rest_s

    @property
    def rested(self) -> bool:
        """Whether it may be tried again."""
        return self.phase is Phase.OPEN and self._clock() >= self._ready_s

    def attempt(self) -> None:
        """Let single requests through."""
        self.phase = Phase.TRIED
        self._trials = self._rules.trials


def spare(unfit: int, all_: int, most: float) -> bool:
    """Whether one more of `all_` engines of a role may be ejected, beside `unfit`: never all, at most this share."""
    return unfit + 1 < all_ and unfit + 1 <= most * all_


def panic(unfit: int, all_: int, most: float) -> bool:
    """Whether so many are ejected, because others went down since, that ejection would do more harm than good."""
    return unfit > 0 and (unfit >= all_ or unfit > most * all_ + 0.5)
