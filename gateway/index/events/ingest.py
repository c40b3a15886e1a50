"""The events of all engines of one namespace."""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.index.contract import Index, Unavailable
from gateway.index.events.batch import Key
from gateway.index.events.election import Leases
from gateway.index.events.source import Source
from gateway.index.events.status import SourceStatus, State

if TYPE_CHECKING:
    from gateway.index.events.follower import Follower

log = logging.getLogger(__name__)

SWEEP_S = 30.0

_OFF = (
    "engine {} publishes no KV events, so its cache is only guessed from what was sent there: start it with "
    '--kv-events-config \'{{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557",'
    '"replay_endpoint":"tcp://*:5558"}}\''
)


class Ingest:
    """Followers by engine."""

    def __init__(self, index: Index, leases: Leases, model: str, block_size: int) -> None:
        self._index = index
        self._leases = leases
        self._model = model
        self._size = block_size
        self._followers: dict[str, list[Follower]] = {}
        self._sweeper = asyncio.create_task(self._sweep(), name=f"sweep {model}")

    async def _sweep(self) -> None:
        """Now and then one gateway takes away what forgotten incarnations left behind."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                if await self._leases.lease("sweep", 2 * SWEEP_S):
                    await self._index.sweep()
            except Unavailable:
                log.debug("the index was not swept: it does not answer")

    async def add(self, engine: str, sources: Sequence[Source]) -> None:
        """Follow an engine; one that is followed already goes on as it was, if its sources are the same."""
        if [follower.source for follower in self._followers.get(engine, ())] == list(sources):
            self._followers.setdefault(engine, [])
            return
        await self.remove(engine)
        from gateway.index.events.follower import Follower  # loads ZeroMQ: 2 MB for those who have events

        self._followers[engine] = [
            Follower(source, self._index, self._leases, self._model, self._size) for source in sources
        ]

    async def remove(self, engine: str, forget: bool = False) -> None:
        """Follow it no more; `forget`: nor shall the index know what it holds, if it is us who write that."""
        for follower in self._followers.pop(engine, ()):
            await follower.close(forget)

    def restarted(self, engine: str) -> None:
        """The engine's process has ended: nothing it held is left."""
        for follower in self._followers.get(engine, ()):
            follower.restarted()

    def served(self, engine: str, tokens: int) -> None:
        """The engine has computed so many prompt tokens: events must follow."""
        for follower in self._followers.get(engine, ()):
            follower.served(tokens)

    @property
    def settled(self) -> bool:
        """Whether the index is as the engines tell, as far as they do."""
        return all(follower.settled for followers in self._followers.values() for follower in followers)

    def approximate(self, engine: str) -> bool:
        """Whether nothing reliable is known of an engine's cache."""
        followers = self._followers.get(engine)
        return not followers or any(f.status().state in (State.SILENT, State.WRONG) for f in followers)

    def names(self, engine: str) -> set[Key]:
        """The engine's own names of the blocks that it holds in its first tier, as its events tell."""
        return {key for follower in self._followers.get(engine, ()) for key in follower.names()}

    def status(self) -> list[SourceStatus]:
        """How every source stands."""
        found = [follower.status() for followers in self._followers.values() for follower in followers]
        off = [engine for engine, followers in self._followers.items() if not followers]
        return found + [SourceStatus(engine, 0, State.OFF, _OFF.format(engine)) for engine in off]

    async def close(self) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        for engine in list(self._followers):
            await self.remove(engine)
