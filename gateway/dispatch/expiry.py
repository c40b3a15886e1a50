"""Was a transfer in time? For answers that are not streamed, whose first byte says nothing about when the KV was read.

A prefill engine counts the requests whose blocks it gave up unread. Read when the lease nears its end and again when
the answer is there: if the count stood still, no block of ours was given up before it was read.
"""

import asyncio

from engines.surface import KV_EXPIRED, total
from gateway.fleet.engine import Engine
from gateway.wire.errors import WireError

_LIMIT = 8 << 20


class Expiry:
    """Watches one transfer's lease from `left_s` seconds on. Costs a timer, and two requests only if it runs out."""

    def __init__(self, prefill: Engine, left_s: float, timeout_s: float) -> None:
        self._prefill = prefill
        self._timeout_s = timeout_s
        self._before: asyncio.Task[float | None] | None = None
        self._timer = asyncio.get_running_loop().call_later(max(left_s, 0), self._due)

    def _due(self) -> None:
        self._before = asyncio.create_task(self._count())

    async def _count(self) -> float | None:
        try:
            answer = await self._prefill.pool.request("GET", b"/metrics", [], first_byte_s=self._timeout_s)
            text = await answer.read(_LIMIT, self._timeout_s)
        except WireError:
            return None
        return total(text.decode(errors="replace"), KV_EXPIRED) if answer.status == 200 else None

    async def in_time(self) -> bool:
        """True if the KV was certainly read within the lease. Call once, when the answer is there."""
        if self._before is None:
            return True
        before = await self._before
        return before is not None and before == await self._count()

    def stop(self) -> None:
        self._timer.cancel()
        if self._before is not None:
            self._before.cancel()
