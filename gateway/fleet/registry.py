"""Engines that register themselves: what supervisors tell in the shared Redis, if the fleet's secret signs it."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from urllib.parse import urlsplit

from redis.exceptions import RedisError

import policies.contract as contract
from engines import record, store
from engines.record import Entry, Record
from gateway.fleet.wanted import Links, Wanted

log = logging.getLogger(__name__)

LOOK_S = 0.3
"""Between two looks at the version, a few bytes."""
READ_S = 3.0
"""Between two looks at everything, whatever the version says."""
LINGER_S = 30.0
"""How long engines stay whose supervisor is silent and did not say goodbye: perhaps Redis has lost its entry. An engine
that has ended is found out by its health."""
RETRY_S = 1.0
MOST_HOSTS = 4096


class Refusals(Protocol):
    """Counts entries that are not believed, by reason."""

    def __call__(self, reason: str) -> None: ...


class Registry:
    """A source of engines. `learn(model, tokenizer)` and `know(links)` are told what comes along."""

    name = "registry"

    def __init__(
        self,
        url: str,
        secret: bytes,
        refused: Refusals,
        learn: Callable[[str, str], None] = lambda model, tokenizer: None,
        know: Callable[[Links], None] = lambda links: None,
        linger_s: float = LINGER_S,
    ) -> None:
        self._url = url
        self._secret = secret
        self._refused = refused
        self._learn = learn
        self._know = know
        self._linger_s = linger_s
        self._entries: dict[str, Entry] = {}
        self._heard_s: dict[str, float] = {}
        self.trouble: dict[str, str] = {}
        """Why an entry is not believed, by host; under "" why Redis cannot be read."""

    async def follow(self, tell: Callable[[Iterable[Wanted]], object]) -> None:
        """Tell all engines whenever they change; until cancelled. What was told last holds while Redis is away."""
        client: Any = None
        told: list[Wanted] | None = None
        version, read_s = b"", 0.0
        try:
            while True:
                pause_s = LOOK_S
                try:
                    client = client or store.client(await store.detect(self._url))
                    now = await client.get(record.VERSION) or b""
                    if now != version or time.monotonic() - read_s > READ_S:
                        await self._read(client)
                        version, read_s = now, time.monotonic()
                    self._note("", "")
                except (RedisError, OSError, TimeoutError) as error:
                    self._note("", f"the registry cannot be read: {type(error).__name__}: {error}")
                    pause_s = RETRY_S
                else:
                    if (wanted := self._wanted()) != told:
                        tell(wanted)
                        told = wanted
                store.not_cancelled()
                await asyncio.sleep(pause_s)
        finally:
            if client is not None:
                await store.close(client)

    async def _read(self, client: Any) -> None:
        hosts = sorted(host.decode() for host in await client.smembers(record.HOSTS))[:MOST_HOSTS]
        blobs = await client.mget([record.key(host) for host in hosts]) if hosts else []
        now = time.monotonic()
        for host, blob in zip(hosts, blobs, strict=True):
            if blob is not None:
                self._take(host, blob, now)
            elif host not in self._heard_s:
                await client.srem(record.HOSTS, host)
        self.trouble = {host: why for host, why in self.trouble.items() if host in ("", *hosts)}
        for host in [host for host, heard_s in self._heard_s.items() if now - heard_s > self._linger_s]:
            log.warning("host %s is not heard of any more: its engines are forgotten", host)
            del self._heard_s[host], self._entries[host]
            await client.srem(record.HOSTS, host)

    def _take(self, host: str, blob: bytes, now: float) -> None:
        try:
            entry = record.verify(blob, host, self._secret)
        except record.Refused as refusal:
            self._refused(refusal.reason)
            self._note(host, str(refusal))
            return
        self._note(host, "")
        self._entries[host], self._heard_s[host] = entry, now
        for engine in entry.engines:
            self._learn(engine.model, engine.tokenizer)
        if entry.links:
            self._know({(k.a, k.b): contract.Link(gbps=k.gbps, latency_us=k.latency_us) for k in entry.links})

    def troubles(self) -> list[str]:
        return [f"registration refused: {why}" if host else why for host, why in self.trouble.items()]

    def _note(self, host: str, why: str) -> None:
        """Keep what is wrong in words, and say it once."""
        if not why:
            self.trouble.pop(host, None)
        elif self.trouble.get(host) != why:
            self.trouble[host] = why
            log.warning("registration refused: %s" if host else "%s", why)

    def _wanted(self) -> list[Wanted]:
        """The newest word on each URL: a supervisor that comes back under another name replaces what it said before."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.signed_s)
        records = {engine.url: engine for entry in entries for engine in entry.engines}
        names = Counter(engine.name for engine in records.values())
        return [wanted_of(records[url], alone=names[records[url].name] == 1) for url in sorted(records)]


def wanted_of(engine: Record, alone: bool = True) -> Wanted:
    """An engine as it registered; one whose name is not alone is told apart by its address."""
    return Wanted(
        name=engine.name if alone else f"{engine.name}@{urlsplit(engine.url).netloc}",
        url=engine.url,
        role=engine.role,
        model=engine.model,
        host=engine.host,
        lease_s=engine.lease_s,
        speed=engine.speed or contract.ASSUMED,
        cost=engine.cost,
        drain=engine.drain,
    )
