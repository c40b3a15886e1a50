"""A linear model fitted while it is used: recursive least squares on relative errors, with a prior, forgetting."""

from collections.abc import Sequence

NOISE = 0.01
"""Variance of a good observation, relative to what was expected."""

FORGET = 0.99
OUTLIER = 0.5
"""An observation counts as this far off at most, as a share of what was expected: one stall does not undo a fit."""


class Line:
    """`y = sum(w * x)`, weights not negative. About ten microseconds an observation.

    `prior` are the weights to start from, `units` typical values of each x, so that all products are of one size.
    """

    __slots__ = ("_cover", "_most", "_units", "_values")

    def __init__(self, prior: Sequence[float], units: Sequence[float], doubt: float = 0.5) -> None:
        self._units = tuple(units)
        self._values = [weight * unit for weight, unit in zip(prior, units, strict=True)]
        scale = max(self._values)
        self._most = [(doubt * max(value, 0.1 * scale)) ** 2 for value in self._values]
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
        expected = max(self.expect(x), 1e-6)
        row = [at / unit / expected for at, unit in zip(x, self._units, strict=True)]
        error = min(max(y / expected - 1.0, -OUTLIER), OUTLIER)
        size = range(len(row))
        cover = self._cover
        along = [sum(cover[i][j] * row[j] for j in size) for i in size]
        spread = NOISE + sum(row[i] * along[i] for i in size)
        for i in size:
            gain = along[i] / spread
            self._values[i] = max(0.0, self._values[i] + gain * error)
            for j in size:
                cover[i][j] = (cover[i][j] - gain * along[j]) / FORGET
        for i in size:
            if cover[i][i] > self._most[i]:
                shrink = (self._most[i] / cover[i][i]) ** 0.5
                for j in size:
                    cover[i][j] *= shrink
                    cover[j][i] *= shrink
