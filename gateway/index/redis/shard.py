"""One shard: a complete index for the prompts whose first block falls into it. All its keys share one hash tag."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from struct import Struct, iter_unpack
from typing import Any, TypeVar

from gateway.index.contract import Holder, InFlight, Lost, Match, Unavailable
from gateway.index.guesses import grid
from gateway.index.redis import library, loads
from gateway.index.redis.links import Caller
from gateway.index.redis.wire import ServerError, bulk, pack
from gateway.index.redis.writer import ShardWriter

log = logging.getLogger(__name__)

SHORT_MS, LONG_MS = 8_000, 1_800_000
"""Lives of the buckets in which guesses are kept; a guess ends when it says, at the latest with its bucket."""

PATIENCE_S = 2.0
"""How long what is not hot may take."""

_LOAD_LIFE_MS = 3_000
_GONE_S = 60.0
"""A gateway that has not told its load for so long is gone."""

_BEAT_MS = 100
"""How long a load that has not changed goes without being told again."""

_SLOT = Struct("<Id")
_FCALL, _FCALL_RO, _HSET = b"FCALL", b"FCALL_RO", b"HSET"
T = TypeVar("T")


def packed(holder: Holder) -> bytes:
    """A holder's name in Redis."""
    return f"{holder.rank}|{holder.tier}|{holder.engine}".encode()


def unpacked(name: bytes) -> Holder:
    rank, tier, engine = name.decode().split("|", 2)
    return Holder(engine, int(rank), tier)


class Shard:
    """Calls of the library on the keys of one tag."""

    def __init__(
        self,
        link: Caller,
        tag: bytes,
        width: int,
        gateway: bytes,
        names: Mapping[int, str],
        restore: Callable[[], Awaitable[None]],
    ) -> None:
        self.nodes, self.meta, self.loads = tag + b"i", tag + b"m", tag + b"l"
        self._tag = tag
        self._link = link
        self._width = str(width).encode()
        self._gateway = gateway
        self._names = names
        self._restore = restore
        self._mending: asyncio.Task[None] | None = None
        self._version = b""
        self._holders: dict[int, Holder] = {}
        # What all matches have in common, packed once; and what they have until a bucket's turn ends.
        self._match_head = b"*15\r\n" + bulk(
            _FCALL_RO, library.function("match"), b"8", self.nodes, self.meta, self.loads
        )
        self._match_width = bulk(self._width)
        self._match_gateway = bulk(gateway)
        self._match_buckets = b""
        self._match_turns = (-1, -1)
        self._told: Mapping[str, InFlight] = {}
        self._told_ms = 0.0

    async def match(self, hashes: bytes, session: bytes, mine: Mapping[str, InFlight], budget_s: float) -> Match:
        """One round trip; our own load goes along when there is news of it."""
        now = time.time() * 1e3
        command = b"".join(
            (
                self._match_head,
                self._buckets_of(now),
                bulk(self._tag + b"b" + session, hashes),
                self._match_width,
                bulk(b"%d" % now),
                self._match_gateway,
            )
        )
        count = 1
        if (news := self.news(mine, now)) is not None:
            command, count = news + command, 2
        try:
            reply = await self._link.call(command, count, budget_s)
        except ServerError as error:
            self._mend(error)
            raise Unavailable(str(error)) from None
        version, depths, short, long, bound, others = reply
        if version != self._version:
            await self._learn_slots(budget_s)
        holders = self._holders
        held = {holders[slot]: depth for slot, depth in iter_unpack(">HI", depths) if slot in holders}
        return Match(
            held=held,
            expected=self._guessed(short) if short else {},
            learned=self._guessed(long) if long else {},
            others=loads.decode(others, now, self._names) if others else {},
            session=bound.decode(),
        )

    def tell(self, mine: Mapping[str, InFlight]) -> None:
        """Tell the others our load, if there is news of it; nobody waits for an answer."""
        if (news := self.news(mine, time.time() * 1e3)) is not None:
            self._link.post(news, 1)

    def news(self, mine: Mapping[str, InFlight], now: float) -> bytes | None:
        """The command that tells the others our load; None if they know it."""
        if mine == self._told and now < self._told_ms + (_BEAT_MS if mine else _LOAD_LIFE_MS):
            return None
        self._told, self._told_ms = mine, now
        return pack(_HSET, self.loads, self._gateway, loads.encode(mine, now + _LOAD_LIFE_MS))

    def _guessed(self, found: bytes) -> dict[str, int]:
        names = self._names
        return {names[key]: depth for key, depth in iter_unpack("<II", found) if key in names}

    def _buckets(self, kind: bytes, life_ms: int, now: float) -> tuple[bytes, bytes]:
        turn = int(now // life_ms)
        return self._tag + kind + b"%d" % (turn - 1), self._tag + kind + b"%d" % turn

    def _buckets_of(self, now: float) -> bytes:
        """The buckets that a match looks into."""
        turns = (int(now // SHORT_MS), int(now // LONG_MS))
        if turns != self._match_turns:
            self._match_turns = turns
            self._match_buckets = bulk(*self._buckets(b"s", SHORT_MS, now), *self._buckets(b"a", LONG_MS, now))
        return self._match_buckets

    def guess(self, kind: bytes, hashes: bytes, names: Sequence[str], ttl_s: float) -> None:
        """These engines will hold this prompt; told without waiting for an answer."""
        life_ms = SHORT_MS if kind == b"s" else LONG_MS
        now = time.time() * 1e3
        ends = now + min(ttl_s * 1e3, life_ms)
        bucket = self._buckets(kind, life_ms, now)[1]
        ids = b"".join([loads.number(name).to_bytes(4, "little") for name in names])
        keys = [key for _, key in grid(hashes)]
        args = (b"%d" % ends, b"%d" % (2 * life_ms), ids, *keys)
        self._link.post(pack(_FCALL, library.function("guess"), b"1", bucket, *args), 1)

    def bind(self, session: bytes, engine: str, ttl_s: float) -> None:
        life = b"%d" % max(1, int(ttl_s * 1e3))
        self._link.post(pack(b"SET", self._tag + b"b" + session, engine.encode(), b"PX", life), 1)

    async def open(self, holder: Holder) -> ShardWriter:
        epoch = random.getrandbits(32)
        args = (packed(holder), self._any(), b"%d" % epoch)
        slot = await self.call("open", (self.meta,), *args)
        return ShardWriter(holder, slot, epoch, self._apply)

    async def forget(self, holder: Holder) -> None:
        await self.call("forget", (self.meta,), packed(holder), self._any())

    @staticmethod
    def _any() -> bytes:
        return b"%d" % random.getrandbits(63)

    async def _apply(self, slot: bytes, epoch: int, number: int, events: list[bytes]) -> bytes:
        head = (slot, b"%d" % epoch, b"%d" % number, self._width)
        places: bytes = await self.call("apply", (self.nodes, self.meta), *head, *events)
        return places

    async def call(self, name: str, keys: Sequence[bytes], *args: bytes) -> Any:
        """Call a function of the library that is not hot. Raises `Unavailable`, `Lost`."""
        command = pack(_FCALL, library.function(name), b"%d" % len(keys), *keys, *args)
        for last in (False, True):
            try:
                return await self._link.call(command, 1, PATIENCE_S)
            except ServerError as error:
                if "LOST" in str(error):
                    raise Lost(str(error)) from None
                if last:
                    raise Unavailable(str(error)) from None
                await self._refused(error)
        raise AssertionError

    async def _refused(self, error: ServerError) -> None:
        """The server has lost the library (flushed, failed over): give it back."""
        if library.MISSING in str(error):
            await self._restore()
        else:
            log.warning("redis: %s", error)

    def _mend(self, error: ServerError) -> None:
        """The same, beside the requests: no lookup waits for it."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mended(error))

    async def _mended(self, error: ServerError) -> None:
        with suppress(Unavailable):
            await self._refused(error)

    async def _learn_slots(self, budget_s: float) -> None:
        """Who is in which slot now."""
        try:
            reply = await self._link.call(pack(b"HGETALL", self.meta), 1, budget_s)
        except ServerError as error:
            raise Unavailable(str(error)) from None
        meta = dict(zip(reply[::2], reply[1::2], strict=True))
        self._holders = {
            int.from_bytes(name[1:], "big"): unpacked(value[_SLOT.size :])
            for name, value in meta.items()
            if name[:1] == b"s"
        }
        self._version = meta.get(b"v", b"")

    async def sweep(self) -> int:
        """Drop entries of forgotten slots, in small steps; then their numbers may be used again. And gone gateways."""
        told = await self._link.call(pack(b"HGETALL", self.loads), 1, PATIENCE_S)
        limit = (time.time() - _GONE_S) * 1e3
        if gone := [name for name, blob in zip(told[::2], told[1::2], strict=True) if loads.ends(blob) < limit]:
            await self._link.call(pack(b"HDEL", self.loads, *gone), 1, PATIENCE_S)
        fields = await self._link.call(pack(b"HKEYS", self.meta), 1, PATIENCE_S)
        dead = [name for name in fields if name[:1] == b"d"]
        if not dead:
            return 0
        cursor: bytes = b"0"
        cut = 0
        while True:
            cursor, dropped = await self.call("sweep", (self.nodes, self.meta), cursor, b"100")
            cut += int(dropped)
            if cursor == b"0":
                break
        await self._link.call(pack(b"HDEL", self.meta, *dead), 1, PATIENCE_S)
        return cut
