"""What a Redis or Valkey server says of itself: its CPU, the time of its calls, its memory."""

from types import TracebackType
from typing import Any, Self

import redis


class Server:
    """The server of `url`. Figures are only those of a benchmark if nobody else uses it."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def match_us(self) -> float:
        """Time spent in lookups since it started."""
        return self._call_us("fcall_ro")

    def apply_us(self) -> float:
        """Time spent in writing since it started."""
        return self._call_us("fcall")

    def _call_us(self, command: str) -> float:
        found = self._info("commandstats").get(f"cmdstat_{command}", {})
        return float(found.get("usec", 0))

    def cpu_s(self) -> float:
        """CPU it has used, user and system."""
        info = self._info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def used_bytes(self) -> int:
        """Memory that it has allocated."""
        return int(self._info("memory")["used_memory"])

    def rss_bytes(self) -> int:
        """Memory that the kernel has given it."""
        return int(self._info("memory")["used_memory_rss"])

    def _info(self, section: str) -> dict[str, Any]:
        return dict(self._client.info(section))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
