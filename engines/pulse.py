"""Whether an engine that lives also works: it answers, and with work its counters grow. Asks nothing itself."""

from engines.supervision import Supervision
from engines.surface import PROGRESS, RUNNING, WAITING, total


class Pulse:
    """What was seen of one engine since it got ready. Times are seconds of one clock."""

    def __init__(self, rules: Supervision, now_s: float) -> None:
        self._rules = rules
        self._answered_s = self._moved_s = now_s
        self._counters: tuple[float | None, ...] = ()
        self.requests = 0
        """Running and waiting, when it was asked last."""

    def answered(self, now_s: float) -> None:
        """Its `/health` was well."""
        self._answered_s = now_s

    def metrics(self, page: str, now_s: float) -> None:
        """Its `/metrics`."""
        idle = not self.requests
        self.requests = int((total(page, RUNNING) or 0.0) + (total(page, WAITING) or 0.0))
        counters = tuple(total(page, name) for name in PROGRESS)
        if idle or not self.requests or counters != self._counters:
            self._counters, self._moved_s = counters, now_s

    def hung(self, now_s: float) -> str:
        """Why it is taken for dead; empty while it is not."""
        silent_s = now_s - self._answered_s
        if silent_s > self._rules.health_s:
            return f"lives, but has not answered /health for {silent_s:.0f} s (supervisor.health_s)"
        still_s = now_s - self._moved_s
        if self.requests and still_s > self._rules.stall_s:
            return f"has {self.requests} requests, and no token for {still_s:.0f} s (supervisor.stall_s)"
        return ""
