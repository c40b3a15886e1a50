"""What an engine shows of itself over HTTP, read by clients: names of vLLM's metrics, and their values."""

import re
from collections.abc import Mapping
from functools import lru_cache

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
KV_BYTES_PULLED = "vllm:nixl_bytes_transferred_sum"
KV_EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"
READ_AFTER_EXPIRY = "vllm:nixl_num_notifications_after_expiry_total"
PROMPT_TOKENS_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
REQUESTS = "http_requests_total"
"""By handler, method and `status` (2xx, 4xx, 5xx)."""
FINISHED = "vllm:request_success_total"
"""By `finished_reason`, `error` among them."""
TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
PROGRESS = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
    FINISHED,
    "vllm:nixl_bytes_transferred_sum",
)
"""What grows while an engine gets on with its work."""


@lru_cache(256)
def _pattern(name: str, labels: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    wanted = "".join(rf'(?=[^}}]*\b{re.escape(key)}="{re.escape(value)}")' for key, value in labels)
    return re.compile(rf"^{re.escape(name)}(?:\{{{wanted}[^}}]*\}})?[ \t]+(\S+)", re.MULTILINE)


def total(exposition: str, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """The sum of a metric's samples whose labels include `labels`; None if there is no such sample.

    Reads Prometheus' text format with one search instead of parsing it all: an engine shows thousands of samples.
    """
    values = _pattern(name, tuple(sorted((labels or {}).items()))).findall(exposition)
    return sum(map(float, values)) if values else None
