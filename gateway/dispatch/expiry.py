"""Was a transfer in time? For answers that are not streamed, whose first byte says nothing about when the KV was read.

A prefill engine counts the requests whose blocks it gave up unread. Read when the lease nears its end, now and then
while nothing has come, and again when the answer is there: if the count stood still, no block of ours was given up
before it was read. If it rises, the decode leg ends at once: what has not been fetched by then would be fetched wrong,
and kept in the decode engine's cache.
"""

import asyncio
from types import TracebackType
from typing import Self

from engines.surface import KV_EXPIRED, total
from gateway.fleet.engine import Engine
from gateway.wire.errors import WireError

_LIMIT = 8 << 20

LOOKS = 10
"""In the time of one lease, once it nears its end."""


class Expired(Exception):
    """Blocks were given up while the decode leg waited for its answer."""


class Expiry:
    """Watches one transfer's lease from `left_s` seconds on, around the decode leg; raises `Expired` out of it.

    Costs a timer, and requests only if it runs out.
    """

    def __init__(self, prefill: Engine, left_s: float, timeout_s: float) -> None:
        self._prefill = prefill
        self._left_s = left_s
        self._timeout_s = timeout_s
        self._before: float | None = None
        self._looking: asyncio.Task[None] | None = None
        self._rose = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(max(self._left_s, 0), self._due)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self._rose and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise Expired from None

    def _due(self) -> None:
        self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        self._before = before = await self._count()
        while before is not None:
            await asyncio.sleep(self._prefill.lease_s / LOOKS)
            now = await self._count()
            if now is not None and now > before:
                self._rose = True
                self._task.cancel()
                return

    async def _count(self) -> float | None:
        try:
            answer = await self._prefill.pool.request("GET", b"/metrics", [], first_byte_s=self._timeout_s)
            text = await answer.read(_LIMIT, self._timeout_s)
        except WireError:
            return None
        return total(text.decode(errors="replace"), KV_EXPIRED) if answer.status == 200 else None

    async def in_time(self) -> bool:
        """True if the KV was certainly read within the lease. Call once, when the answer is there."""
        if self._looking is None:
            return True
        self._looking.cancel()
        return self._before is not None and self._before == await self._count()
