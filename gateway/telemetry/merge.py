"""Metrics of several workers as if they were one process."""

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_SUMMED = frozenset(("baton_in_flight", "baton_in_flight_tokens", "baton_connections"))
"""Gauges of what each worker has; all others say the same of something that they share, and the largest counts."""


def merge(texts: Iterable[str], gone: Iterable[str] = ()) -> bytes:
    """One exposition of several: counters and histograms are summed, gauges summed or the largest taken.

    Of processes that are `gone` only what they counted is left.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(texts, gone))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: Iterable[str], gone: Iterable[str]) -> None:
        self._texts = texts
        self._gone = gone

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for text, there in chain(zip(self._texts, repeat(True)), zip(self._gone, repeat(False))):
            for family in text_string_to_metric_families(text):
                if family.type == "gauge" and not there:
                    continue
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                mine = values.setdefault(family.name, {})
                summed = family.type != "gauge" or family.name in _SUMMED
                for sample in family.samples:
                    key = (sample.name, tuple(sample.labels.items()))
                    before = mine.get(key, 0.0)
                    mine[key] = before + sample.value if summed else max(before, sample.value)
        for name, family in families.items():
            family.samples = [Sample(which, dict(labels), value) for (which, labels), value in values[name].items()]
            yield family
