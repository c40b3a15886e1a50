"""Links to the nodes of a cluster: each shard's keys are in one slot, and slots move and fail over."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from redis.crc import key_slot

from engines.store import Address, Place
from gateway.index.contract import Unavailable
from gateway.index.redis.link import Link, fixed
from gateway.index.redis.wire import ServerError, open_wire, pack

log = logging.getLogger(__name__)

SLOTS = 16_384
_ASK_S = 1.0
_PAUSE_S = 0.2
"""Between two looks at who has which slot."""
_ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")


class Cluster:
    """Knows which node has which slot, and asks again when an answer shows that it has changed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._links: dict[Address, Link] = {}
        self._owner: list[Address | None] = [None] * SLOTS
        self._asking: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Learn the slots, and connect to a node. Raises OSError, `ServerError`."""
        await self._learn()
        for address in {owner for owner in self._owner if owner is not None}:
            await self._link(address).connect()

    def of(self, tag: bytes) -> "Slot":
        """Where the keys of a tag (with its braces) are."""
        return Slot(self, key_slot(tag))

    def at(self, slot: int) -> Link:
        """Raises `Unavailable` while nobody is known to have the slot."""
        if (owner := self._owner[slot]) is None:
            self.ask()
            raise Unavailable("no node of the cluster has the slot")
        return self._link(owner)

    def moved(self, slot: int, told: str) -> None:
        """A node says `MOVED slot host:port`."""
        host, _, port = told.split()[2].rpartition(":")
        self._owner[slot] = Address(host, int(port))
        self.ask()

    def ask(self) -> None:
        """Look soon who has which slot."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        with suppress(OSError, ServerError):
            await self._learn()
        await asyncio.sleep(_PAUSE_S)

    async def _learn(self) -> None:
        for seed in (*self._links, *self._place.seeds):
            try:
                async with asyncio.timeout(_ASK_S):
                    wire = await open_wire(seed, self._place)
                    try:
                        ranges = await wire.send(pack(b"CLUSTER", b"SLOTS"), 1)
                    finally:
                        wire.close()
            except (OSError, ServerError, TimeoutError) as error:
                log.debug("cluster node %s: %s", seed, error)
                continue
            for first, last, (host, port, *_), *_ in ranges:
                owner = Address(host.decode() or seed.host, port)
                self._owner[first : last + 1] = [owner] * (last - first + 1)
            self._forget()
            return
        raise OSError(f"no node of {', '.join(map(str, self._place.seeds))} answers")

    def _forget(self) -> None:
        owners = set(self._owner)
        for address in [address for address in self._links if address not in owners]:
            self._links.pop(address).close()

    def _link(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(self._place, fixed(address))
        return link

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        for link in self._links.values():
            link.close()


class Slot:
    """The link to whoever has one slot now."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster = cluster
        self._number = number

    async def call(self, commands: bytes, count: int, budget_s: float) -> Any:
        """As `Link.call`; a slot that has moved is followed once."""
        try:
            return await self._once(commands, count, budget_s)
        except ServerError as error:
            if not str(error).startswith("MOVED"):
                raise
            self._cluster.moved(self._number, str(error))
        return await self._once(commands, count, budget_s)

    async def _once(self, commands: bytes, count: int, budget_s: float) -> Any:
        try:
            return await self._cluster.at(self._number).call(commands, count, budget_s)
        except Unavailable:
            self._cluster.ask()
            raise
        except ServerError as error:
            if str(error).startswith(_ELSEWHERE) and not str(error).startswith("MOVED"):
                self._cluster.ask()
                raise Unavailable(str(error)) from None
            raise

    def post(self, commands: bytes, count: int) -> None:
        """As `Link.post`."""
        with suppress(Unavailable):
            self._cluster.at(self._number).post(commands, count)
