"""The implementations of the index: in memory, on Redis, on Valkey; servers are real ones on sockets of their own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from gateway.index.embedded import Embedded
from gateway.index.memory import MemoryIndex
from gateway.index.redis import RedisIndex
from tests.index.servers import KINDS, Lossy, server


@dataclass
class Made:
    """An index for one test, and how to disturb what is between it and its server."""

    index: Any
    faults: Lossy | None = None

    async def close(self) -> None:
        await self.index.close()
        if self.faults is not None:
            await self.faults.close()


class Maker(Protocol):
    """Makes empty indexes of one implementation."""

    walks: int
    """Random walks that are worth their time."""

    async def make(self, width: int = 32) -> Made: ...


class InMemory:
    walks = 8

    async def make(self, width: int = 32) -> Made:
        return Made(MemoryIndex(width))


class InRedis:
    walks = 6

    def __init__(self, running: Embedded) -> None:
        self.server = running

    async def make(self, width: int = 32) -> Made:
        """Over a connection that can lose replies; with shards where nodes are 8 blocks wide."""
        with self.server.client() as client:
            client.flushall()
        lossy = Lossy(self.server.url)
        await lossy.start()
        shards = 3 if width == 8 else 1
        return Made(await RedisIndex.connect(lossy.url, "m:16", width=width, shards=shards, budget_s=1.0), lossy)


@pytest.fixture(params=("memory", *KINDS), scope="module")
def maker(request: pytest.FixtureRequest) -> Iterator[Maker]:
    if request.param == "memory":
        yield InMemory()
        return
    with server(request.param) as running:
        yield InRedis(running)
