"""The index of one namespace over one or more shards of a Redis or Valkey server."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from redis.exceptions import RedisError
from xxhash import xxh3_64_hexdigest

from engines import store
from engines.store import Place
from gateway.index.contract import (
    Change,
    Holder,
    InFlight,
    Lost,
    Match,
    Removed,
    Stored,
    Unavailable,
    UnknownParent,
)
from gateway.index.inspect import Run, Stats
from gateway.index.redis import library, loads
from gateway.index.redis.inspect import survey
from gateway.index.redis.links import links_to
from gateway.index.redis.shard import LONG, SHORT, Shard
from gateway.index.redis.wire import ServerError
from gateway.index.redis.writer import ShardWriter

log = logging.getLogger(__name__)


@contextmanager
def _answering() -> Iterator[None]:
    """The server's failures as `Unavailable`."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(str(error)) from None


class IndexMisconfigured(Exception):
    """The server is there but cannot hold an index; the message names the setting and the mend."""


class RedisIndex:
    """One namespace; make it with `connect`."""

    def __init__(
        self, url: str, place: Place, namespace: str, width: int, shards: int, gateway: str, budget_s: float
    ) -> None:
        self.url = url
        self.gateway = gateway.encode()
        self._space = b"baton:" + xxh3_64_hexdigest(namespace.encode()).encode()
        self._client = store.client(place)
        self._links = links_to(place)
        self._budget_s = budget_s
        self._names: dict[int, str] = {}
        self._ids: dict[str, bytes] = {}
        self._restoring = asyncio.Lock()
        tags = [b"{%b:%d}" % (self._space, number) for number in range(shards)]
        self._shards = [
            Shard(self._links.of(tag), tag, width, self.gateway, self._names, self._restore) for tag in tags
        ]

    @classmethod
    async def connect(
        cls,
        url: str,
        namespace: str,
        *,
        width: int = 32,
        shards: int = 1,
        gateway: str = "",
        budget_s: float = 0.005,
    ) -> Self:
        """Connect, check the server and load the library. Raises `Unavailable`, `IndexMisconfigured`."""
        try:
            place = await store.detect(url)
        except store.StoreError as error:
            raise IndexMisconfigured(str(error)) from None
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"{url}: {error}") from None
        index = cls(url, place, namespace, width, shards, gateway or secrets.token_hex(8), budget_s)
        try:
            await index._check()
            await library.load(index._client)
            await index._links.connect()
        except (RedisError, ServerError, OSError, TimeoutError) as error:
            await index.close()
            raise Unavailable(f"{url}: {error}") from None
        except BaseException:
            await index.close()
            raise
        return index

    async def _check(self) -> None:
        info = await self._client.info("server")
        version = str(info.get("valkey_version", info["redis_version"]))
        if int(version.split(".")[0]) < 7:
            raise IndexMisconfigured(f"{self.url} is version {version}: functions need Redis 7.0 or Valkey")
        memory = await self._client.info("memory")
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if int(memory.get("maxmemory", 0)) and policy != "noeviction":
            raise IndexMisconfigured(
                f"{self.url} has maxmemory-policy {policy}, which would drop the whole index at once: "
                "set maxmemory-policy noeviction, or give the index a server of its own"
            )

    async def _restore(self) -> None:
        async with self._restoring:
            with _answering():
                await library.load(self._client)

    def _shard(self, hashes: bytes) -> Shard:
        if len(self._shards) == 1:
            return self._shards[0]
        return self._shards[int.from_bytes(hashes[:8], "little") % len(self._shards)]

    def know(self, names: Sequence[str]) -> None:
        self._ids.clear()
        self._names.clear()
        self._names.update({loads.number(name): name for name in names})

    def _packed(self, engines: Sequence[str]) -> bytes:
        """Their names in a guess; what is guessed of them will be understood."""
        return b"".join([self._ids.get(name) or self._id(name) for name in engines])

    def _id(self, name: str) -> bytes:
        number = loads.number(name)
        self._names[number] = name
        packed = self._ids[name] = number.to_bytes(4, "little")
        return packed

    def match(self, hashes: bytes, session: bytes = b"") -> Coroutine[Any, Any, Match]:
        return self._shard(hashes).match(hashes, session, self._budget_s)

    async def open(self, holder: Holder) -> "RedisWriter":
        return RedisWriter(self, holder, [await shard.open(holder) for shard in self._shards])

    async def forget(self, holder: Holder) -> None:
        for shard in self._shards:
            await shard.forget(holder)

    def expect(self, hashes: bytes, engines: Sequence[str], ttl_s: float) -> None:
        self._shard(hashes).guess(SHORT, hashes, self._packed(engines), ttl_s)

    def learn(self, hashes: bytes, engines: Sequence[str], ttl_s: float) -> None:
        self._shard(hashes).guess(LONG, hashes, self._packed(engines), ttl_s)

    def bind(self, hashes: bytes, session: bytes, engine: str, ttl_s: float) -> None:
        self._shard(hashes).bind(session, engine, ttl_s)

    def publish(self, loads: Callable[[], Mapping[str, InFlight]]) -> None:
        for shard in self._shards:
            shard.mine = loads

    def beat(self) -> None:
        for shard in self._shards:
            shard.tell()

    async def sweep(self) -> int:
        return sum([await shard.sweep() for shard in self._shards])

    async def lease(self, name: str, ttl_s: float) -> bool:
        """Take or keep a lease that one gateway has at a time. Raises `Unavailable`."""
        life = b"%d" % (ttl_s * 1e3)
        return bool(await self._shards[0].call("lease", (self._lease(name),), self.gateway, life))

    async def release(self, name: str) -> None:
        """Give a lease back, if it is ours."""
        await self._shards[0].call("release", (self._lease(name),), self.gateway)

    def _lease(self, name: str) -> bytes:
        return b"{%b:0}lease:" % self._space + name.encode()

    async def stats(self) -> Stats:
        """How large the index is; reads it all, in small steps. Raises `Unavailable`."""
        nodes = blocks = pairs = size = 0
        holders: dict[str, int] = {}
        async for run in self._runs():
            nodes += 1
            blocks += run.blocks
            pairs += run.weight
            for holder, held in run.holders.items():
                holders[holder] = holders.get(holder, 0) + held
        with _answering():
            for shard in self._shards:
                size += await self._client.memory_usage(shard.nodes, samples=0) or 0
        return Stats(nodes, blocks, pairs, holders, size)

    async def runs(self) -> list[Run]:
        """Every node, the heaviest first. Raises `Unavailable`."""
        return sorted([run async for run in self._runs()], key=lambda run: -run.weight)

    async def _runs(self) -> AsyncIterator[Run]:
        with _answering():
            for shard in self._shards:
                async for run in survey(self._client, shard):
                    yield run

    async def close(self) -> None:
        self._links.close()
        await store.close(self._client)


class RedisWriter:
    """The blocks of one holder: each goes to the shard of its prompt's first block."""

    def __init__(self, index: RedisIndex, holder: Holder, writers: list[ShardWriter]) -> None:
        self.holder = holder
        self._index = index
        self._writers = writers
        self._left: list[tuple[ShardWriter, list[Change]]] = []
        self._orphan = False

    async def apply(self, changes: Sequence[Change]) -> None:
        if len(self._writers) == 1:
            return await self._writers[0].apply(changes)
        if not changes and not self._left:
            self._left = [(writer, []) for writer in self._writers]
        self._left = self._left or self._divided(changes)
        while self._left:
            writer, mine = self._left[0]
            try:
                await writer.apply(mine)
            except (UnknownParent, Lost):
                self._left.clear()
                raise
            self._left.pop(0)
        if self._orphan:
            self._orphan = False
            raise UnknownParent
        return None

    def _divided(self, changes: Sequence[Change]) -> list[tuple[ShardWriter, list[Change]]]:
        """The changes of each shard, up to one whose parent is unknown."""
        parts: list[list[Change]] = [[] for _ in self._writers]
        fresh: dict[bytes, int | None] = {}
        for change in changes:
            keys = [change.hashes[at : at + 8] for at in range(0, len(change.hashes), 8)]
            if isinstance(change, Stored):
                home = self._home(change, fresh)
                if home is None:
                    self._orphan = True
                    break
                fresh.update(dict.fromkeys(keys, home))
                parts[home].append(change)
                continue
            for shard, writer in enumerate(self._writers):
                gone = [key for key in keys if fresh.get(key, shard if key in writer else None) == shard]
                if gone:
                    parts[shard].append(Removed(b"".join(gone)))
            fresh.update(dict.fromkeys(keys))  # none is a parent any more, whatever its writer still says
        return [(writer, part) for writer, part in zip(self._writers, parts, strict=True) if part]

    def _home(self, change: Stored, fresh: Mapping[bytes, int | None]) -> int | None:
        if change.parent is None:
            return int.from_bytes(change.hashes[:8], "little") % len(self._writers)
        if change.parent in fresh:
            return fresh[change.parent]
        for shard, writer in enumerate(self._writers):
            if change.parent in writer:
                return shard
        return None

    async def close(self) -> None:
        await self._index.forget(self.holder)
