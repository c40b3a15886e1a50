"""What comes in for one model: arrivals, the prefill work they bring, and how objectives are met."""

import math
import time
from collections.abc import Callable

WINDOW_S = 30.0
STEP = 0.02
REST = 0.998
"""What is left of a price's distance from 1 (in logarithms) after a request without a miss."""

ALLOWED = 0.1
"""Share of requests that may start late before the price falls for it: some prompts are longer than the objective."""

MOST_LATE = 20.0
"""Late starts above the allowance that are remembered at most."""

_LOW, _HIGH = math.log(0.1), math.log(4.0)


class Traffic:
    """Decaying sums over about the last half minute; own requests only."""

    def __init__(self, ttft_slo_s: float, itl_slo_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttft_slo_s = ttft_slo_s
        self._itl_slo_s = itl_slo_s
        self._clock = clock
        self._began_s = self._at_s = clock()
        self._arrivals = self._work_s = self._price = self._late = 0.0

    def arrived(self, work_s: float) -> None:
        """A request was placed that brings so much prefill."""
        self._decay()
        self._arrivals += 1.0
        self._work_s += work_s

    def ended(self, ttft_s: float, gap_s: float | None) -> None:
        """A stream has ended: the price of delaying decodes rises with a missed pause, falls with a late start."""
        paused, late = gap_s is not None and gap_s > self._itl_slo_s, ttft_s > self._ttft_slo_s
        self._late = min(max(self._late + late - ALLOWED, 0.0), MOST_LATE)
        missed = paused - (late if self._late > 1.0 else 0)
        self._price = min(max(self._price * REST + STEP * missed, _LOW), _HIGH)

    @property
    def itl_price(self) -> float:
        return math.exp(self._price)

    def rates(self) -> tuple[float, float]:
        """Arrivals a second, and seconds of prefill that they brought a second."""
        self._decay()
        seen = WINDOW_S * max(1.0 - math.exp((self._began_s - self._at_s) / WINDOW_S), 1e-2)
        return self._arrivals / seen, self._work_s / seen

    def _decay(self) -> None:
        now = self._clock()
        left = math.exp((self._at_s - now) / WINDOW_S)
        self._at_s = now
        self._arrivals *= left
        self._work_s *= left
