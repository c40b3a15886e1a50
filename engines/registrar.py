"""Registers this host's engines in the shared Redis, under a lease that ends with the supervisor."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from engines import record, store
from engines.keeper import Keeper
from engines.record import Entry, Link
from engines.service import Phase

log = logging.getLogger(__name__)

GOODBYE_S = 2.0
HIDDEN = {Phase.STOPPED, Phase.FAILED}
LEAVING = {Phase.DRAINING, Phase.STOPPING}
"""All others are registered: gateways ask engines by themselves whether they are ready."""


class Registrar:
    """Tells at once what changes, and all of it again every `RENEW_S`; Redis may come and go meanwhile.

    `host`: an id of this supervisor; `address`: where gateways reach its engines, if not where the file says.
    """

    def __init__(self, keeper: Keeper, url: str, secret: bytes, host: str, address: str = "") -> None:
        self._keeper = keeper
        self._host = host
        self._address = address
        self._secret = secret
        self._url = url
        self._client: Any = None
        self._changed = asyncio.Event()
        self._told: Entry | None = None
        self._task: asyncio.Task[None] | None = None
        self._well = True

    def start(self) -> None:
        self._keeper.supervisor.followers.append(self._changed.set)
        self._task = asyncio.create_task(self._keep(), name="registrar")

    def _entry(self) -> Entry:
        services = self._keeper.supervisor.services
        records = tuple(
            record.of_engine(fleet, engine, self._address, drain=service.phase in LEAVING)
            for fleet, engine in self._keeper.engines()
            if (service := services.get(engine.name)) is not None and service.phase not in HIDDEN
        )
        links = tuple(Link(link.a, link.b, link.gbps, link.latency_us) for link in self._keeper.fleet.links)
        return Entry(self._host, time.time(), records, links)

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._tell()
                self._note(True)
            except (RedisError, OSError, TimeoutError) as error:
                self._note(False, f"{type(error).__name__}: {error}")
            store.not_cancelled()
            with suppress(TimeoutError):
                async with asyncio.timeout(record.RENEW_S):  # `wait_for` of 3.11 loses a cancellation
                    await self._changed.wait()

    async def _tell(self) -> None:
        if self._client is None:
            self._client = store.client(await store.detect(self._url))
        entry = self._entry()
        same = self._told is not None and (self._told.engines, self._told.links) == (entry.engines, entry.links)
        blob = record.sign(entry, self._secret)
        life_ms = int(record.LEASE_S * 1e3)
        await self._client.set(record.key(self._host), blob, px=life_ms)
        new = await self._client.sadd(record.HOSTS, self._host)
        if new or not same:
            await self._client.incr(record.VERSION)
        self._told = entry

    def _note(self, well: bool, why: str = "") -> None:
        if well != self._well:
            log.log(logging.INFO if well else logging.ERROR, "registration %s", "is back" if well else f"fails: {why}")
        self._well = well

    async def close(self) -> None:
        """Say goodbye: gateways forget the engines at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._client is None:
            return
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                empty = record.sign(Entry(self._host, time.time()), self._secret)
                await self._client.set(record.key(self._host), empty, px=int(record.LEASE_S * 1e3))
                await self._client.incr(record.VERSION)
        await store.close(self._client)
