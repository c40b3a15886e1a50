"""Keeps one connection to one primary for the hot path, and gives up quickly where it does not answer."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from engines.store import Address, Place
from gateway.index.contract import Unavailable
from gateway.index.redis.budget import Budget
from gateway.index.redis.wire import DEMOTED, ServerError, Wire, open_wire, pack

log = logging.getLogger(__name__)

FAILURES = 5
"""So many in a row, and nothing is asked any more but one call every `PROBE_S`."""

PROBE_S = 0.5
SILENT_S = 2.0
"""A server that has said nothing for so long, though it was asked, is looked for anew."""
_CONNECT_S = 2.0
_SENTINEL_S = 0.5


class Link:
    """One connection to the server that `find` says, which is asked again for each new connection."""

    def __init__(self, place: Place, find: Callable[[], Awaitable[Address]]) -> None:
        self._place = place
        self._find = find
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._budgets: dict[float, Budget] = {}
        self._failures = 0
        self._probe_s = 0.0

    def of(self, tag: bytes) -> "Link":
        """Where the keys of a tag are: all of them here."""
        return self

    async def connect(self) -> None:
        """Connect, if that is not done. Raises OSError, `ServerError`."""
        if self._wire is not None and not self._wire.closed:
            return
        async with asyncio.timeout(_CONNECT_S):
            self._wire = await open_wire(await self._find(), self._place)

    async def _connected(self, budget_s: float) -> Wire:
        """The connection; waits so long for a new one. Raises `Unavailable`."""
        if self._wire is not None and not self._wire.closed:
            return self._wire
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._again())
        await asyncio.wait((self._connecting,), timeout=budget_s)
        if self._wire is None or self._wire.closed:
            self._failures += 1
            raise Unavailable("no connection to the index")
        return self._wire

    async def _again(self) -> None:
        try:
            await self.connect()
        except (OSError, ServerError, TimeoutError) as error:
            log.debug("redis: %s", error)

    async def call(self, commands: bytes, count: int, budget_s: float) -> Any:
        """Send commands in one go and return the last one's answer. Raises `Unavailable`, `ServerError`."""
        if self._failures >= FAILURES:
            now = time.monotonic()
            if now < self._probe_s:
                raise Unavailable("the index does not answer")
            self._probe_s = now + PROBE_S
        wire = await self._connected(budget_s)
        answer = wire.send(commands, count)
        if (budget := self._budgets.get(budget_s)) is None:
            budget = self._budgets[budget_s] = Budget(budget_s)
        budget.watch(answer)
        try:
            reply = await answer
        except (TimeoutError, ConnectionError) as error:
            self._failures += 1
            if self._failures >= FAILURES and time.monotonic() > wire.heard_s + SILENT_S:
                wire.abandon()  # a host that vanished never closes a connection
            raise Unavailable(str(error) or "the index was too slow") from None
        except ServerError as error:
            if str(error).startswith(DEMOTED):
                self._failures += 1
                raise Unavailable(str(error)) from None
            raise
        self._failures = 0
        return reply

    def post(self, commands: bytes, count: int) -> None:
        """Send commands whose answers nobody waits for; nothing happens without a connection."""
        if self._wire is not None and not self._wire.closed and self._failures < FAILURES:
            self._wire.post(commands, count)

    def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._wire is not None:
            self._wire.close()


def fixed(address: Address) -> Callable[[], Awaitable[Address]]:
    """A server that is always at one place."""

    async def find() -> Address:
        return address

    return find


def primary(place: Place) -> Callable[[], Awaitable[Address]]:
    """The primary of that name, as the first sentinel says that knows one. Raises OSError if none does."""

    async def find() -> Address:
        for seed in place.seeds:
            try:
                async with asyncio.timeout(_SENTINEL_S):
                    wire = await open_wire(seed)
                    try:
                        found = await wire.send(pack(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", place.master.encode()), 1)
                    finally:
                        wire.close()
            except (OSError, ServerError, TimeoutError) as error:
                log.debug("sentinel %s: %s", seed, error)
                continue
            if found:
                return Address(found[0].decode(), int(found[1]))
        raise OSError(f"no sentinel of {', '.join(map(str, place.seeds))} knows a primary {place.master!r}")

    return find
