"""Latencies of requests, simulated or measured: summed up in one way, so that one can be held against the other."""

from collections.abc import Sequence
from typing import Any, Self

import msgspec

from load.slo import Slo

_POINTS = (50, 90, 99)


class Spread(msgspec.Struct, frozen=True):
    """Mean and percentiles, ms."""

    mean: float
    p50: float
    p90: float
    p99: float


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Times in ms. They count from when a request was due."""

    requests: int
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread
    slo_met: float
    """Share of requests with TTFT and TPOT both in time; those that failed were not."""
    goodput_rps: float
    """Requests a second that met both."""
    span_s: float

    @classmethod
    def of(
        cls,
        rows: Sequence[tuple[float, float, float, int]],
        gaps: Sequence[tuple[float, int]],
        slo: Slo,
        missed: int = 0,
        **more: Any,
    ) -> Self:
        """Sum up `rows` of when a request was due, its first and its last token came (s), and how many there were;
        `gaps` between tokens (s), and how often each occurred; so many `missed` besides. Needs `numpy`.
        """
        import numpy as np

        times = np.array([row[:3] for row in rows]).reshape(-1, 3)
        due, first, last = times.T
        answers = np.array([answer - 1 for *_, answer in rows])
        met = sum(slo.met(first - due, last - first, answer) for due, first, last, answer in rows)
        span_s = float(last.max() - due.min()) if rows else 0.0
        return cls(
            requests=len(rows),
            ttft_ms=spread(first - due),
            itl_ms=weighted(gaps),
            tpot_ms=spread((last - first)[answers > 0] / answers[answers > 0]),
            e2e_ms=spread(last - due),
            slo_met=met / max(1, len(rows) + missed),
            goodput_rps=met / span_s if span_s else 0.0,
            span_s=span_s,
            **more,
        )


def spread(seconds: Any) -> Spread:
    """Of an array of seconds."""
    import numpy as np

    if not len(seconds):
        return Spread(0.0, 0.0, 0.0, 0.0)
    points = np.percentile(seconds, _POINTS)
    return Spread(*(float(1e3 * value) for value in (seconds.mean(), *points)))


def weighted(gaps: Sequence[tuple[float, int]]) -> Spread:
    """Of values that occurred several times each."""
    import numpy as np

    if not gaps:
        return Spread(0.0, 0.0, 0.0, 0.0)
    values = np.array([value for value, _ in gaps])
    weights = np.array([weight for _, weight in gaps], dtype=float)
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    below = np.cumsum(weights)
    points = values[np.searchsorted(below, np.array(_POINTS) / 100 * below[-1])]
    mean = float((values * weights).sum() / below[-1])
    return Spread(*(float(1e3 * value) for value in (mean, *points)))
