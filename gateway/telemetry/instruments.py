"""Counters and histograms for the hot path: a third of the cost of prometheus_client's, which take a lock at each step.

One event loop writes them and reads them for a scrape, so they need none. What they show is prometheus_client's own.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counter:
    """A number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Histogram:
    """How often a value fell between bounds; each bound belongs to the bucket below it."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


Child = TypeVar("Child")


class _Family(Collector, Generic[Child]):
    """Children by their label values."""

    def __init__(self, registry: CollectorRegistry, labels: Sequence[str]) -> None:
        self._labels = labels
        self._children: dict[tuple[str, ...], Child] = {}
        registry.register(self)

    def keep(self, label: str, kept: Collection[str]) -> None:
        """Forget all children with another value of a label; nothing happens where there is no such label."""
        if label in self._labels:
            at = self._labels.index(label)
            for values in [values for values in self._children if values[at] not in kept]:
                del self._children[values]


class Counters(_Family[Counter]):
    """A counter for each set of label values; call it with the values."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]) -> None:
        self._family = (name, text, None, labels)
        super().__init__(registry, labels)

    def __call__(self, *values: str) -> Counter:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Counter()
        return child

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(*self._family)
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        yield family


class Histograms(_Family[Histogram]):
    """A histogram for each set of label values; call it with the values."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, bounds: Sequence[float], labels: Sequence[str]
    ) -> None:
        self._family = (name, text, None, None, labels)
        self._bounds = bounds
        self._names = [*(floatToGoString(bound) for bound in bounds), "+Inf"]
        super().__init__(registry, labels)

    def __call__(self, *values: str) -> Histogram:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Histogram(self._bounds)
        return child

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(*self._family)
        for values, child in self._children.items():
            total = 0
            buckets = []
            for name, count in zip(self._names, child.counts, strict=True):
                total += count
                buckets.append((name, total))
            family.add_metric(values, buckets, child.sum)
        yield family
