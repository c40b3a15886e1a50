"""The search: which coefficients make the model's figures the measured ones.

One number after another, in an order that chance decides, is multiplied or divided by its stride; what is better stays
and strides farther, what is not strides less. Now and then two are moved at once, for those that make up for each
other, and at times chance jumps. The seed decides all of it; time only decides where it ends.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import astuple

from engines.model.profile import Profile
from load.fit.closed import run
from load.fit.coefficients import Values, bounded, concerns, profiles, speeds
from load.fit.table import Figures, Row

FIGURES = ("ttft_p50_ms", "tpot_p50_ms", "itl_p99_ms", "rps")
_STRIDE, _LONGEST, _SHORTEST = 0.2, 0.7, 0.003
_PAIRS = 0.4
"""Share of tries that move two numbers."""
_JUMPS = 0.05
"""Share of tries in which several numbers jump."""
_WHOLE = 0.5
"""How much the mean counts beside the median, so that the half of the rows that is worse is not forgotten."""
_CAP = 1.0
"""No error counts for more than this in the mean: what the model cannot do shall not lead it astray."""

Errors = tuple[float, ...]


def errors(row: Row, modelled: Figures) -> Errors:
    """ln(modelled / measured) of each of `FIGURES`."""
    return tuple(math.log(a / b) for a, b in zip(astuple(modelled), astuple(row.measured), strict=True))


def loss(rows: Sequence[Row], found: Sequence[Errors]) -> float:
    """What is minimised: of each figure, the median of absolute errors and half of their mean.

    Rows of the same engines, collocated or not, are a group, and all groups count the same: else the larger ones are
    fitted and the others given up.
    """
    groups: dict[tuple[bool, frozenset[int]], list[Errors]] = {}
    for row, each in zip(rows, found, strict=True):
        groups.setdefault((row.setup.prefill is None, frozenset(row.setup.sizes)), []).append(each)
    return statistics.fmean(_loss(column) for group in groups.values() for column in zip(*group, strict=True))


def _loss(column: Sequence[float]) -> float:
    sizes = [abs(error) for error in column]
    return statistics.median(sizes) + _WHOLE * statistics.fmean(min(size, _CAP) for size in sizes)


class Search:
    """Looks for coefficients; `values` and `loss` are the best so far."""

    def __init__(
        self, rows: Sequence[Row], base: Profile, start: Mapping[str, float], names: Iterable[str], seed: int
    ) -> None:
        """Only the numbers of these `names` are moved, and of them only those that the rows depend on."""
        self._rows = rows
        self._base = base
        self._random = random.Random(seed)
        self.values: Values = dict(start)
        self.tries = 0
        self._names = [name for name in names if any(concerns(name, row) for row in rows)]
        self._strides = dict.fromkeys(self._names, _STRIDE)
        self._errors: list[Errors] = self._model(self.values, rows)
        self.loss = loss(rows, self._errors)

    @property
    def settled(self) -> bool:
        """Nothing near is better."""
        return all(stride <= _SHORTEST for stride in self._strides.values())

    def run(self, more: Callable[[], bool]) -> None:
        """Until it has settled, or there shall be no more. May be broken off anywhere."""
        while not self.settled:
            names = self._random.sample(self._names, len(self._names))
            for name in names:
                if not more():
                    return
                self._turn(name)

    def _turn(self, name: str) -> None:
        """Try to move one number, with or without others."""
        chance = self._random.random()
        if chance < _JUMPS:
            self._try({other: self._random.gauss(0, 0.3) for other in self._names if self._random.random() < 0.3})
            return
        stride = self._strides[name] * self._random.uniform(0.5, 1.5)
        sign = self._random.choice((-1, 1))
        second = {}
        if chance < _JUMPS + _PAIRS:
            other = self._random.choice(self._names)
            second = {other: self._strides[other] * self._random.gauss(0, 1)}
        if any(self._try({**second, name: way * stride}) for way in (sign, -sign)):
            self._strides[name] = min(_LONGEST, self._strides[name] * 1.6)
        else:
            self._strides[name] = max(_SHORTEST, self._strides[name] * 0.8)

    def _try(self, moves: Mapping[str, float]) -> bool:
        """Multiply numbers by e to the power of these; keep it if that is better."""
        tried = {**self.values, **{name: bounded(name, self.values[name] * math.exp(by)) for name, by in moves.items()}}
        changed = [name for name in moves if tried[name] != self.values[name]]
        touched = [at for at, row in enumerate(self._rows) if any(concerns(name, row) for name in changed)]
        self.tries += 1
        if not touched:
            return False
        found = list(self._errors)
        for at, error in zip(touched, self._model(tried, [self._rows[at] for at in touched]), strict=True):
            found[at] = error
        now = loss(self._rows, found)
        if now >= self.loss:
            return False
        self.values, self._errors, self.loss = tried, found, now
        return True

    def _model(self, values: Values, rows: Sequence[Row]) -> list[Errors]:
        engines, networks = profiles(values, self._base), speeds(values)
        return [errors(row, run(row, engines, networks)) for row in rows]
