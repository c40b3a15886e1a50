"""The prefills that one gateway has on an engine, in order: what of them the engine has done already."""

import math


class Backlog:
    """Engines prefill first come, first served, so the oldest is the one that is computed now."""

    __slots__ = ("_past_s", "_work_s", "since_s", "single")

    def __init__(self) -> None:
        self._work_s: dict[object, float] = {}
        self._past_s = 0.0
        self.since_s = math.inf
        """When the present one began: as the one before it ended, or as it came and met nobody."""
        self.single = True
        """Whether the present one has met no other all the time: those that come later share its steps."""

    def __bool__(self) -> bool:
        return bool(self._work_s)

    def join(self, who: object, work_s: float, starts_s: float) -> None:
        """One more, which will take `work_s` and begins at `starts_s` if nobody is before it."""
        self.single = not self._work_s
        if self.single:
            self.since_s = starts_s
        self._work_s[who] = work_s

    def leave(self, who: object, now_s: float) -> None:
        """It is done, or given up."""
        if next(iter(self._work_s), None) is who:
            self._past_s += self.done_s(now_s)
            self.since_s = now_s
        self._work_s.pop(who, None)

    def spent_s(self, now_s: float) -> float:
        """Seconds of prefill that it has done in all: by what this grows meanwhile, others held up a stream."""
        return self._past_s + self.done_s(now_s)

    def done_s(self, now_s: float, lateness: float = 1.0) -> float:
        """Seconds of the present one's work that are done, by an engine that is so many times slower than it should."""
        if not self._work_s:
            return 0.0
        passed_s = max(0.0, now_s - self.since_s)
        return min(passed_s / lateness, next(iter(self._work_s.values())))
