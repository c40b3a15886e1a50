"""The rules by which a supervisor keeps its engines: table `[supervisor]` of the fleet file. Units are in the names."""

import random
from collections import deque

from pydantic import BaseModel, ConfigDict, Field


class Supervision(BaseModel):
    """How patient a supervisor is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_s: float = Field(1800.0, gt=0, description="until an engine has to be ready")
    health_s: float = Field(30.0, gt=0, description="an engine that lives and does not answer so long has hung")
    stall_s: float = Field(180.0, gt=0, description="an engine with work and without a token for so long has hung")
    drain_s: float = Field(30.0, ge=0, description="how long requests may go on at an engine that is to end")
    stop_s: float = Field(10.0, gt=0, description="after that, until it is killed")
    watch_s: float = Field(30.0, ge=0, description="how long an engine that was replaced is watched before the next")
    watch_errors: float = Field(0.02, ge=0, description="share of answers that may be errors then, beside those before")
    watch_ttft: float = Field(3.0, gt=1, description="so many times the TTFT of before is too slow; its cache is cold")
    watch_itl: float = Field(1.5, gt=1, description="so many times the ITL of before is too slow")
    backoff_s: float = Field(1.0, gt=0, description="until an engine that ended is started again; doubles each time")
    backoff_most_s: float = Field(60.0, gt=0, description="the longest such pause")
    crashes: int = Field(5, gt=0, description="after so many ends within `crash_window_s` an engine is given up")
    crash_window_s: float = Field(600.0, gt=0, description="see `crashes`")
    log_bytes: int = Field(20 << 20, gt=0, description="an engine's log is turned over at this size")
    log_files: int = Field(3, gt=0, description="so many old logs of an engine are kept")


class Crashes:
    """Decides after each unexpected end when to try again, and when to give up. Times are seconds of one clock."""

    def __init__(self, rules: Supervision) -> None:
        self._rules = rules
        self._ends: deque[float] = deque()

    def ended(self, now_s: float) -> float | None:
        """The process ended: seconds until it is started again; None if it has ended too often."""
        rules, ends = self._rules, self._ends
        while ends and ends[0] <= now_s - rules.crash_window_s:
            ends.popleft()
        ends.append(now_s)
        if len(ends) >= rules.crashes:
            return None
        pause_s = min(rules.backoff_s * 2.0 ** (len(ends) - 1), rules.backoff_most_s)
        return pause_s * random.uniform(0.8, 1.2)  # engines that fell together do not all load at once

    def forget(self) -> None:
        """Somebody mended it."""
        self._ends.clear()
