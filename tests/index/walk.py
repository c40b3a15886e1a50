"""A random walk over an index and the naive model side by side: after every step both answer the same."""

import asyncio
from random import Random
from typing import Any

from xxhash import xxh3_64_digest

from gateway.index.contract import Change, Holder, Index, Lost, Removed, Stored, Unavailable, UnknownParent, Writer
from tests.index.naive import Naive, blocks

HOLDERS = [Holder("http://a:1"), Holder("http://a:1", 1), Holder("http://b:1"), Holder("http://b:1", 0, "cpu")]
HOLDERS += [Holder(f"http://c{i}:1") for i in range(2)]


class Walk:
    """The state of one walk. `steps` counts changes applied and matches compared."""

    def __init__(self, index: Index, faults: Any = None) -> None:
        self.index = index
        self.naive = Naive()
        self.writers: dict[Holder, Writer] = {}
        self.paths: list[list[bytes]] = []
        self.steps = 0
        self._faults = faults

    def path(self, pick: Random) -> list[bytes]:
        """A prompt: a new one, one that was there, or a branch or an extension of one."""
        if len(self.paths) < 3 or pick.random() < 0.05:
            path: list[bytes] = []
        else:
            path = pick.choice(self.paths)
            if pick.random() < 0.5:
                return path
            path = path[: pick.randrange(len(path) + 1)] if pick.random() < 0.5 else path
        path = list(path)
        for _ in range(pick.choice((1, 1, 2, 5, 17, 40, 70))):
            path.append(xxh3_64_digest((path[-1] if path else b"") + pick.randbytes(2)))  # chained, as they are
        path = path[:150]
        if len(self.paths) < 60:
            self.paths.append(path)
        else:
            self.paths[pick.randrange(60)] = path
        return path

    def change(self, pick: Random, mine: set[bytes]) -> Change:
        """Something that may happen to a holder with these blocks; now and then something that may not."""
        if mine and pick.random() < 0.45:
            return Removed(b"".join(self.victims(pick, mine)))
        path = self.path(pick)
        starts = [k for k in range(len(path)) if k == 0 or path[k - 1] in mine]
        start = pick.choice(starts) if pick.random() < 0.97 else pick.randrange(len(path))
        end = pick.randrange(start, len(path)) + 1
        return Stored(path[start - 1] if start else None, b"".join(path[start:end]))

    def victims(self, pick: Random, mine: set[bytes]) -> list[bytes]:
        kind = pick.random()
        if kind < 0.3:
            return pick.sample(sorted(mine), pick.randrange(1, min(len(mine), 20) + 1))
        path = pick.choice(self.paths)
        start = pick.randrange(len(path)) if kind < 0.8 else max(0, len(path) - pick.randrange(1, 20))
        return path[start : start + pick.choice((1, 3, 30, 99))]  # held or not

    async def step(self, pick: Random) -> None:
        kind = pick.random()
        holder = pick.choice(HOLDERS)
        if holder not in self.writers or kind < 0.01:
            await self.reopen(holder)
        elif kind < 0.02:
            await self.writers.pop(holder).close()
            self.naive.forget(holder)
        elif kind < 0.04:
            await self.index.sweep()
        else:
            await self.apply(pick, holder)
        for _ in range(2):
            await self.compare(self.path(pick) if pick.random() < 0.3 else pick.choice(self.paths or [[b"absent!!"]]))

    async def reopen(self, holder: Holder) -> None:
        old = self.writers.get(holder)
        self.writers[holder] = await self.index.open(holder)
        self.naive.open(holder)
        if old is not None:
            try:
                await old.apply([Stored(None, b"overtook")])
            except Lost:
                return
            raise AssertionError("a writer whose holder was taken over can still write")

    async def apply(self, pick: Random, holder: Holder) -> None:
        shadow = set(self.naive.held[holder])
        changes: list[Change] = []
        for _ in range(pick.choice((1, 1, 2, 3, 6))):
            change = self.change(pick, shadow)
            changes.append(change)
            if isinstance(change, Removed):
                shadow -= set(blocks(change.hashes))
            elif change.parent is None or change.parent in shadow:
                shadow |= set(blocks(change.hashes))
        self.steps += len(changes)
        lose = self._faults is not None and pick.random() < 0.05
        if lose:
            self._faults.lose_replies(1)
        for _ in range(50):
            try:
                await self.writers[holder].apply(changes)
                known = True
            except UnknownParent:
                known = False
            except Unavailable:
                await asyncio.sleep(0.02)
                continue
            break
        else:
            raise AssertionError("the index did not come back")
        if lose:
            self._faults.lose_replies(0)  # there was nothing to lose
        assert known == self.naive.apply(holder, changes)

    async def compare(self, path: list[bytes]) -> None:
        self.steps += 1
        hashes = b"".join(path)
        for _ in range(50):
            try:
                match = await self.index.match(hashes)
            except Unavailable:
                await asyncio.sleep(0.02)
                continue
            assert dict(match.held) == self.naive.match(hashes)
            return
        raise AssertionError("the index did not come back")
