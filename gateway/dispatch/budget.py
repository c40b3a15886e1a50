"""How many retries all requests together may have: a share of the traffic, so that trouble is not multiplied.

As Finagle's `RetryBudget` and Envoy's `retry_budget`: a share of the recent requests, and a few in any case.
"""

WINDOW_S = 10.0


class RetryBudget:
    """Retries of the last ten to twenty seconds against requests of the same time."""

    __slots__ = ("_ends_s", "_floor", "_seen", "_seen_before", "_share", "_taken", "_taken_before")

    def __init__(self, share: float, floor: int) -> None:
        """`share` of the requests may be retries, and `floor` in ten seconds whatever the traffic."""
        self._share = share
        self._floor = floor
        self._ends_s = 0.0
        self._seen = self._seen_before = self._taken = self._taken_before = 0

    def seen(self, now_s: float) -> None:
        """A request came in."""
        if now_s >= self._ends_s:
            self._roll(now_s)
        self._seen += 1

    def left(self, now_s: float) -> int:
        """Retries that may be taken now."""
        if now_s >= self._ends_s:
            self._roll(now_s)
        allowed = self._floor + self._share * (self._seen + self._seen_before)
        return max(0, int(allowed) - self._taken - self._taken_before)

    def take(self) -> None:
        """One is taken."""
        self._taken += 1

    def _roll(self, now_s: float) -> None:
        lasting = now_s < self._ends_s + WINDOW_S
        self._seen_before, self._taken_before = (self._seen, self._taken) if lasting else (0, 0)
        self._seen = self._taken = 0
        self._ends_s = now_s + WINDOW_S
