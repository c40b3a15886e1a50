"""`/metrics`: the counters as Prometheus text, with vLLM's names, types, labels and bucket bounds."""

from collections.abc import Iterable, Mapping, Sequence

from engines.double.limits import Limits
from engines.double.stats import Histogram, Stats

_START = """\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds {:.2f}
"""
"""Another value is another life of the engine."""

_HELP = "# HELP "
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def render(ranks: Sequence[Stats], limits: Limits, model: str) -> str:
    """The exposition of an engine with these ranks. Counters that a double has no use for are left out."""
    pages = [_of_rank(rank, stats, limits, model).split(_HELP) for rank, stats in enumerate(ranks)]
    families = []
    for first, *others in zip(*pages, strict=True):
        samples = (line for other in others for line in other.splitlines(keepends=True)[1:] if line.startswith("vllm:"))
        families.append("".join([first, *samples]))
    return _HELP.join(families)


def answered(counts: Mapping[tuple[str, int], int]) -> str:
    """What vLLM's instrumentation counts: POSTs by route and first digit of the status."""
    lines = [
        "# HELP http_requests_total Total number of requests by method, status and handler.",
        "# TYPE http_requests_total counter",
    ]
    for (route, digit), count in counts.items():
        lines.append(f'http_requests_total{{handler="{route}",method="POST",status="{digit}xx"}} {float(count)}')
    return "\n".join(lines) + "\n"


def _of_rank(rank: int, stats: Stats, limits: Limits, model: str) -> str:
    page = _Page(f'engine="{rank}",model_name="{model}"')
    page.histogram("nixl_xfer_time_seconds", stats.transfer_s)
    page.histogram("nixl_bytes_transferred", stats.transfer_bytes)
    page.counter("nixl_num_failed_transfers_total", stats.transfers_failed)
    page.counter("nixl_num_failed_notifications_total", 0)
    page.counter("nixl_num_kv_expired_reqs_total", stats.leases_expired)
    page.counter("nixl_num_notifications_after_expiry_total", stats.notified_late)
    page.gauge("num_requests_running", stats.running)
    page.gauge("num_requests_waiting", stats.waiting + stats.loading)
    page.family("num_requests_waiting_by_reason", "gauge", "reason", _reasons(stats))
    page.family("num_requests_kv_fetch_by_stage", "gauge", "stage", _stages(stats))
    page.gauge("kv_cache_usage_perc", stats.usage)
    page.counter("prefix_cache_queries_total", stats.cache_queries)
    page.counter("prefix_cache_hits_total", stats.cache_hits)
    page.counter("external_prefix_cache_queries_total", stats.external_queries)
    page.counter("external_prefix_cache_hits_total", stats.external_hits)
    page.counter("num_preemptions_total", stats.preemptions)
    page.counter("prompt_tokens_total", stats.prompt_tokens)
    page.family("prompt_tokens_by_source_total", "counter", "source", _sources(stats))
    page.counter("prompt_tokens_cached_total", stats.local_cache_hit + stats.external_kv_transfer)
    page.counter("generation_tokens_total", stats.generated)
    page.family("request_success_total", "counter", "finished_reason", stats.finished.items())
    page.line(
        "admission_rejections_total",
        "counter",
        [(f'model_name="{model}",reason="max_num_queued_reqs"', stats.admission_rejections)],
    )
    page.histogram("time_to_first_token_seconds", stats.first_token_s)
    page.histogram("inter_token_latency_seconds", stats.between_tokens_s)
    page.histogram("e2e_request_latency_seconds", stats.request_s)
    config = (
        f'block_size="{limits.block_size}",cache_dtype="auto",enable_prefix_caching="True",engine="{rank}",'
        f'num_gpu_blocks="{limits.num_blocks}"'
    )
    page.line("cache_config_info", "gauge", [(config, 1)])
    return page.text() + _START.format(stats.started_s)


def _reasons(stats: Stats) -> Iterable[tuple[str, float]]:
    return (("capacity", stats.waiting), ("deferred", stats.loading))


def _stages(stats: Stats) -> Iterable[tuple[str, float]]:
    return (("waiting_to_start", 0), ("in_progress", stats.loading), ("completed_waiting", 0))


def _sources(stats: Stats) -> Iterable[tuple[str, float]]:
    for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
        yield source, getattr(stats, source)


class _Page:
    def __init__(self, labels: str) -> None:
        self._labels = labels
        self._lines: list[str] = []

    def line(self, name: str, kind: str, values: Iterable[tuple[str, float]]) -> None:
        self._lines += [f"# HELP vllm:{name} {name.replace('_', ' ')}", f"# TYPE vllm:{name} {kind}"]
        self._lines += [f"vllm:{name}{{{labels}}} {float(value)}" for labels, value in values]

    def gauge(self, name: str, value: float) -> None:
        self.line(name, "gauge", [(self._labels, value)])

    def counter(self, name: str, value: float) -> None:
        self.line(name, "counter", [(self._labels, value)])

    def family(self, name: str, kind: str, label: str, values: Iterable[tuple[str, float]]) -> None:
        self.line(name, kind, [(f'{self._labels},{label}="{key}"', value) for key, value in values])

    def histogram(self, name: str, histogram: Histogram) -> None:
        self.line(name, "histogram", ())
        below = 0
        for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
            below += count
            self._lines.append(f'vllm:{name}_bucket{{{self._labels},le="{bound}"}} {float(below)}')
        self._lines.append(f"vllm:{name}_count{{{self._labels}}} {float(histogram.total)}")
        self._lines.append(f"vllm:{name}_sum{{{self._labels}}} {histogram.sum}")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"
