"""What the double counted: the numbers behind `/metrics`."""

import time
from bisect import bisect_left
from dataclasses import dataclass, field


class Histogram:
    """A Prometheus histogram: counts per bucket, the sum and the number of all observations."""

    __slots__ = ("bounds", "counts", "sum", "total")

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.total = 0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
        self.total += times


def _latency() -> Histogram:
    return Histogram(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)


def _first_token() -> Histogram:
    return Histogram(
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0
    )


def _between_tokens() -> Histogram:
    return Histogram(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)


def _transfer_time() -> Histogram:
    return Histogram(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)


def _transfer_bytes() -> Histogram:
    return Histogram(*(float(2 ** (10 + power)) for power in range(1, 25, 2)))


@dataclass
class Stats:
    """Gauges and counters since the engine started; a revived engine starts again at zero."""

    started_s: float = field(default_factory=time.time)
    """Unix time"""
    running: int = 0
    waiting: int = 0
    """queued for capacity"""
    loading: int = 0
    """waiting for KV blocks from another engine"""
    usage: float = 0.0
    """share of KV blocks in use, 0 to 1"""
    received: int = 0
    """sequences that reached the engine"""
    cache_queries: int = 0
    """prompt tokens looked up in the prefix cache"""
    cache_hits: int = 0
    external_queries: int = 0
    external_hits: int = 0
    local_compute: int = 0
    """prompt tokens computed here"""
    local_cache_hit: int = 0
    external_kv_transfer: int = 0
    """prompt tokens whose KV came from another engine"""
    generated: int = 0
    """tokens"""
    preemptions: int = 0
    admission_rejections: int = 0
    finished: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)
    )
    transfers_failed: int = 0
    leases_expired: int = 0
    notified_late: int = 0
    """completion notices for blocks whose lease had ended or that were fetched before"""
    blocks_pulled: int = 0
    transfer_s: Histogram = field(default_factory=_transfer_time)
    transfer_bytes: Histogram = field(default_factory=_transfer_bytes)
    first_token_s: Histogram = field(default_factory=_first_token)
    between_tokens_s: Histogram = field(default_factory=_between_tokens)
    request_s: Histogram = field(default_factory=_latency)

    def looked_up(self, prompt: int, local: int, external: int) -> None:
        """A prompt of so many tokens found so many cached here and fetches so many from another engine."""
        self.cache_queries += prompt
        self.cache_hits += local
        self.external_queries += prompt - local
        self.external_hits += external
        self.local_cache_hit += local
        self.external_kv_transfer += external
        self.local_compute += prompt - local - external

    @property
    def busy(self) -> int:
        """Sequences that are not finished."""
        return self.running + self.waiting + self.loading

    @property
    def prompt_tokens(self) -> int:
        return self.local_compute + self.local_cache_hit + self.external_kv_transfer
