"""Engines behind names in DNS: `dns+http://name:port` stands for every address of the name, now and later.

`dns+http://_service._tcp.name` asks for SRV records, which tell ports too (needs the package dnspython).
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from engines.fleet import DNS
from gateway.fleet.wanted import Wanted

log = logging.getLogger(__name__)

RESOLVE_S = 5.0
"""Between two looks at a name."""
TIMEOUT_S = 4.0
MOST = 256
"""So many addresses of a name count."""

Resolve = Callable[[str, int | None], Awaitable[list[tuple[str, int]]]]
"""(name, port) -> (address, port) of each; without a port the name has SRV records. Raises OSError."""


async def resolve(name: str, port: int | None) -> list[tuple[str, int]]:
    """As the system does it; SRV records with dnspython."""
    if port is None:
        return await _services(name)
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [(str(address[0]), int(address[1])) for *_, address in found]


async def _services(name: str) -> list[tuple[str, int]]:
    """Raises OSError."""
    try:
        from dns.asyncresolver import Resolver
        from dns.exception import DNSException
    except ImportError:
        raise OSError("SRV records need the package dnspython: pip install dnspython; or give a port") from None
    try:
        answer = await Resolver().resolve(name, "SRV")
    except DNSException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    return [
        address
        for record in answer
        for address in await resolve(record.target.to_text(omit_final_dot=True), int(record.port))
    ]


class Names:
    """What the names that were asked for mean now. A name that cannot be resolved means what it meant before."""

    def __init__(self, how: Resolve = resolve, pause_s: float = RESOLVE_S) -> None:
        self._resolve = how
        self._pause_s = pause_s
        self._found: dict[str, tuple[str, ...]] = {}
        self._news = asyncio.Event()
        self.trouble: dict[str, str] = {}
        """Why a name means nothing, by URL."""

    def expand(self, one: Wanted) -> Iterator[Wanted]:
        """The engines that are meant; one that has an address is itself."""
        if not one.url.startswith(DNS):
            yield one
            return
        if one.url not in self._found:
            self._found[one.url] = ()
            self._news.set()
        for url in self._found[one.url]:
            yield replace(one, name=f"{one.name}@{url.partition('://')[2]}", url=url)

    def only(self, urls: set[str]) -> None:
        """Forget all names but these."""
        for url in [url for url in self._found if url not in urls]:
            del self._found[url]
            self.trouble.pop(url, None)

    async def follow(self, changed: Callable[[], object]) -> None:
        """Look again and again; `changed` is called whenever a name means something else. Until cancelled."""
        while True:
            self._news.clear()
            before = dict(self._found)
            await asyncio.gather(*(self._look(url) for url in before))
            if any(self._found.get(url, found) != found for url, found in before.items()):
                changed()
            try:
                async with asyncio.timeout(self._pause_s if self._found else None):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _look(self, url: str) -> None:
        scheme, _, where = url.removeprefix(DNS).partition("://")
        name, colon, port = where.rpartition(":")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await self._resolve(name if colon else where, int(port) if colon else None)
            if not found:
                raise OSError("it has no address")
        except (OSError, TimeoutError) as error:
            why = f"{url} cannot be resolved: {error or 'no answer in time'}"
            if self.trouble.get(url) != why:
                log.warning("%s", why)
            self.trouble[url] = why
            return
        self.trouble.pop(url, None)
        urls = sorted({f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in found})
        if url in self._found:
            self._found[url] = tuple(urls[:MOST])
