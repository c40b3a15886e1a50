"""Writes generated turns into an index, as the engines' event streams would be."""

import asyncio
from collections.abc import Iterable

from gateway.index.contract import Change, Holder, Index, Writer
from load.prefixes import Turn

AT_A_TIME = 4
"""Engines that are written at once; what one has to write goes in order."""


class Ingest:
    """The writers of all engines; make it with `open`."""

    def __init__(self, index: Index, writers: dict[Holder, Writer]) -> None:
        self.index = index
        self._writers = writers

    @classmethod
    async def open(cls, index: Index, holders: Iterable[Holder]) -> "Ingest":
        """An empty incarnation of every engine. Raises `Unavailable`."""
        return cls(index, {holder: await index.open(holder) for holder in holders})

    async def push(self, turns: Iterable[Turn]) -> None:
        """Write all turns; returns when they can be read. Raises `Unavailable`, `Lost`."""
        waiting: dict[Holder, list[Change]] = {}
        for turn in turns:
            waiting.setdefault(turn.holder, []).extend(turn.changes)

        async def work() -> None:
            while waiting:
                holder, changes = waiting.popitem()
                await self._writers[holder].apply(changes)

        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))

    async def close(self) -> None:
        """Leave nothing in the index."""
        for writer in self._writers.values():
            await writer.close()
        await self.index.sweep()
