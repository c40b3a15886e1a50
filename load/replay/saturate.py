"""What a fleet can bear: the highest load at which enough requests meet their objective."""

from collections.abc import Callable

import msgspec

from load.replay.outcome import Outcome

STEPS = 7
"""Halvings between a load that is borne and one that is not: within one percent."""

LEAST_S = 60.0
"""Traffic that arrives in less time than this fills no queue, whatever the load."""

_LOWEST = 1 / 64


class Limit(msgspec.Struct, frozen=True):
    """The last load that was borne."""

    speed: float
    """Times the traffic's own; 0 if even a 64th of it is too much."""
    outcome: Outcome | None
    requests_per_s: float
    gpus: int
    """Of the whole fleet."""
    more: bool = False
    """It may bear more: the traffic is too short to tell."""

    @property
    def per_gpu(self) -> float:
        """Requests a second and GPU."""
        return self.requests_per_s / self.gpus


def limit(run: Callable[[float], Outcome | None], wanted: float, gpus: int, highest: float) -> Limit:
    """Find it; `run` replays the traffic so many times as fast (`highest` at most), `wanted` is the share of requests
    in time. A run that was broken off since too many were late is None.

    A fleet that bears a load is taken to bear every smaller one; the search halves the range in logarithms.
    """
    borne: dict[float, Outcome] = {}

    def bears(speed: float) -> bool:
        found = run(speed)
        if found is not None and found.slo_met >= wanted and not found.refused:
            borne[speed] = found
            return True
        return False

    low = high = 1.0
    if bears(1.0):
        while high * 2 <= highest and bears(high * 2):
            high *= 2
        low, high = high, high * 2
        if high > highest:
            best = borne[low]
            return Limit(low, best, best.requests / best.span_s, gpus, more=True)
    else:
        while low > _LOWEST and not bears(low / 2):
            low /= 2
        low, high = low / 2, low
    if low not in borne:
        return Limit(0.0, None, 0.0, gpus)
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if bears(middle) else (low, middle)
    best = borne[low]
    return Limit(low, best, best.requests / best.span_s, gpus)
