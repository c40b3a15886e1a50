"""A linear model fitted while it is used: a Kalman filter on relative errors, with a prior and slow drift."""

from collections.abc import Sequence

NOISE = 0.01
"""Variance of a good observation, relative to what was expected."""

DRIFT = 1e-5
"""By this share of the first doubt it grows again with each observation: what was learnt an hour ago may be wrong. Not
by a factor: that lets the error of rounding grow as well, until the fit runs away."""

OUTLIER = 0.5
"""An observation counts as this far off at most, as a share of what was expected: one stall does not undo a fit."""


class Line:
    """`y = sum(w * x)`, weights not negative. About ten microseconds an observation.

    `prior` are the weights to start from, `units` typical values of each x, so that all products are of one size.
    """

    __slots__ = ("_cover", "_least", "_most", "_units", "_values")

    def __init__(self, prior: Sequence[float], units: Sequence[float], doubt: float = 0.5) -> None:
        self._units = tuple(units)
        self._values = [weight * unit for weight, unit in zip(prior, units, strict=True)]
        scale = max(self._values)
        self._most = [(doubt * max(value, 0.1 * scale)) ** 2 for value in self._values]
        self._least = [most**0.5 for most in self._most]
        size = range(len(self._values))
        self._cover = [[self._most[i] if i == j else 0.0 for j in size] for i in size]

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(value / unit for value, unit in zip(self._values, self._units, strict=True))

    def expect(self, x: Sequence[float]) -> float:
        """What y will be."""
        return sum(value * at / unit for value, at, unit in zip(self._values, x, self._units, strict=True))

    def learn(self, x: Sequence[float], y: float) -> None:
        """Take an observation in."""
        free = list(range(len(self._values)))
        while free and (stuck := self._correct(x, y, free)) is not None:
            free.remove(stuck)

    def _correct(self, x: Sequence[float], y: float, free: Sequence[int]) -> int | None:
        """One step that moves the free weights; or none, and a weight that would have changed by more than half.

        That one changes by half and stays out of the step: else the others would move to make up for what it cannot do,
        each time further from the truth.
        """
        expected = max(self.expect(x), 1e-6)
        scale = max(min(expected, y), 1e-6)  # what is far too slow must come down as fast as it went up
        row = [at / unit / scale for at, unit in zip(x, self._units, strict=True)]
        error = min(max(y / expected - 1.0, -OUTLIER), OUTLIER) * expected / scale
        cover, values = self._cover, self._values
        along = [sum(cover[i][j] * row[j] for j in free) for i in free]
        spread = NOISE + sum(row[i] * moved for i, moved in zip(free, along, strict=True))
        gains = [moved / spread for moved in along]
        for i, gain in zip(free, gains, strict=True):
            step = gain * error
            most = 0.5 * (values[i] if step < 0.0 else max(values[i], self._least[i]))
            if abs(step) > most:
                values[i] += most if step > 0.0 else -most
                for j in range(len(values)):
                    if j != i:
                        cover[i][j] = cover[j][i] = 0.0
                return i
        for i, gain in zip(free, gains, strict=True):
            values[i] += gain * error
            for j, moved in zip(free, along, strict=True):
                cover[i][j] -= gain * moved
            cover[i][i] = min(cover[i][i] + DRIFT * self._most[i], self._most[i])
        return None
