"""The index's part of `/metrics`; read when asked for, so that requests pay nothing for it."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.index.lookup import Lookup

_SOURCE = ["model", "engine", "rank"]
_COUNTS = ("batches", "gaps", "resyncs", "restarts", "orphans", "unreadable")


class IndexState(Collector):
    """How prompts are read, and how each engine's events stand."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        mode = GaugeMetricFamily("baton_prompt_mode", "1 for the way that prompts are read.", labels=["model", "mode"])
        checks = CounterMetricFamily("baton_prompt_checks", "Readings held against an engine's.", labels=["model"])
        drift = CounterMetricFamily(
            "baton_prompt_mismatches", "Readings that an engine's differed from.", labels=["model"]
        )
        warnings = GaugeMetricFamily("baton_index_warnings", "What `/readyz?verbose` warns of.", labels=["model"])
        state = GaugeMetricFamily("baton_index_source", "1 for the state of a source.", labels=[*_SOURCE, "state"])
        blocks = GaugeMetricFamily("baton_index_blocks", "Blocks held, as the events tell.", labels=_SOURCE)
        lag = GaugeMetricFamily("baton_index_lag_seconds", "Age of the last batch when it came.", labels=_SOURCE)
        events = CounterMetricFamily("baton_index_events", "What happened to a source.", labels=[*_SOURCE, "what"])
        for model, namespace in self._lookup.namespaces.items():
            mode.add_metric([model, namespace.prompts.mode], 1)
            checks.add_metric([model], namespace.prompts.checks)
            drift.add_metric([model], namespace.prompts.mismatches)
            warnings.add_metric([model], len(namespace.warnings()))
            for source in namespace.ingest.status():
                labels = [model, source.engine, str(source.rank)]
                state.add_metric([*labels, source.state], 1)
                blocks.add_metric(labels, source.blocks)
                lag.add_metric(labels, source.lag_s)
                for what in _COUNTS:
                    events.add_metric([*labels, what], getattr(source, what))
        yield from (mode, checks, drift, warnings, state, blocks, lag, events)
