"""Blocks that a prefill engine keeps for a decode engine, until that has read them or the lease ends.

As vLLM's NIXL connector (`nixl/base_worker.py`): a heartbeat extends a lease to two thirds of its length from now, a
notice for a request without a lease is counted, and nothing tells the decode engine that a lease has ended.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engines.double.pool import Block, Pool
from engines.double.stats import Stats


@dataclass(slots=True)
class _Lease:
    blocks: list[Block]
    end_s: float
    timer: asyncio.TimerHandle


class Leases:
    """The leases of one engine. `seconds` may be changed; it counts for leases that begin or are extended later."""

    def __init__(self, pool: Pool, stats: Stats, seconds: float, changed: Callable[[], None]) -> None:
        self._pool = pool
        self._stats = stats
        self.seconds = seconds
        self._changed = changed
        self._held: dict[str, _Lease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request: str) -> bool:
        return request in self._held

    def begin(self, request: str, blocks: list[Block]) -> None:
        """Keep a finished request's blocks; the request's reference to them becomes the lease's."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self.seconds
        self._held[request] = _Lease(blocks, end_s, loop.call_at(end_s, self._expire, request))

    def notify(self, request: str) -> None:
        """A decode engine has read the blocks (or needs them no more)."""
        if request in self._held:
            self._end(request)
        else:
            self._stats.notified_late += 1
            self._changed()

    def extend(self, requests: Iterable[str]) -> None:
        """A heartbeat for requests that wait on a decode engine."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self.seconds * 2 / 3
        for request in requests:
            lease = self._held.get(request)
            if lease is not None and end_s > lease.end_s:
                lease.timer.cancel()
                lease.end_s = end_s
                lease.timer = loop.call_at(end_s, self._expire, request)

    def expire(self) -> int:
        """End all leases now, as if their time had passed; returns how many."""
        requests = list(self._held)
        for request in requests:
            self._expire(request)
        return len(requests)

    def close(self) -> None:
        """Forget everything: the engine is gone."""
        for lease in self._held.values():
            lease.timer.cancel()
        self._held.clear()

    def _expire(self, request: str) -> None:
        self._stats.leases_expired += 1
        self._end(request)

    def _end(self, request: str) -> None:
        lease = self._held.pop(request)
        lease.timer.cancel()
        self._pool.release(lease.blocks)
        self._changed()
