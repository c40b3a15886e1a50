"""Follows the events of one source and keeps the index equal to what its engine holds.

The ledger is the truth: whatever goes wrong between here and the index, a new writer is opened and everything stored
again from it. Whatever goes wrong between the engine and here is replayed; where that is impossible, the ledger starts
again empty, and what the engine does not tell again is not credited.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec

from gateway.index.contract import GPU, Change, Holder, Index, Lost, Unavailable, UnknownParent, Writer
from gateway.index.events.batch import FULL, AllBlocksCleared, Batch, BlockStored, Key, decode
from gateway.index.events.election import LEASE_S, RENEW_S, Candidate, Leases, Part
from gateway.index.events.ledger import Ledger
from gateway.index.events.source import Source
from gateway.index.events.status import SourceStatus, State
from gateway.index.events.stream import Message, Stream

log = logging.getLogger(__name__)

BATCH_S = 0.005
"""How long events are collected: a round trip costs the index more than a block."""

QUIET_S = 1.0
"""Once nothing has come for so long, the engine is asked whether the last batches were lost: no later one will tell."""

SILENT_S = 10.0
SILENT_BLOCKS = 4
"""An engine that computed so many blocks without an event for so long publishes somewhere else."""

LATELY_S = 2.0
"""A prompt's last event may come so long before its answer."""


class Follower:
    """One source."""

    def __init__(self, source: Source, index: Index, leases: Leases, model: str, block_size: int) -> None:
        self.source = source
        self._index = index
        self._model = model
        self._size = block_size
        self._candidate = Candidate(leases, f"{source.engine}#{source.rank}")
        self._ledgers: dict[str, Ledger] = {}
        self._writers: dict[str, Writer] = {}
        self._todo: dict[str, list[Change]] = {}
        self._next = self._sure = 0
        """The next batch; the one that was next when the engine was last asked whether it had told more."""
        self._last_ts = 0.0
        self._reset = False
        self._verify = False
        self._wake = asyncio.Event()
        self._wrong = ""
        self._groups: dict[int | None, bool] = {}
        self._served_tokens = 0
        self._heard_s = time.monotonic()
        self.settled = False
        """Whether the index is as the engine tells: we have written all of it, or somebody alive has."""
        self.batches = self.gaps = self.resyncs = self.restarts = self.unreadable = 0
        self.lag_s = 0.0
        self._tasks = [
            asyncio.create_task(self._elect(), name=f"election {source.engine}"),
            asyncio.create_task(self._follow(), name=f"events {source.engine}"),
        ]

    def restarted(self) -> None:
        """The engine's process has ended: nothing it held is left."""
        self._reset = True
        self._wake.set()

    def served(self, tokens: int) -> None:
        """The engine has computed so many prompt tokens. An event of just now is of these: it overtook the answer."""
        if not self.batches or time.monotonic() - self._heard_s > LATELY_S:
            self._served_tokens += tokens

    def names(self) -> Iterator[Key]:
        """The engine's own names of the blocks in its first tier."""
        return self._ledgers[GPU].names() if GPU in self._ledgers else iter(())

    def status(self) -> SourceStatus:
        state, why = self._state()
        return SourceStatus(
            engine=self.source.engine,
            rank=self.source.rank,
            state=state,
            why=why,
            blocks=sum(map(len, self._ledgers.values())),
            orphans=sum(ledger.orphans for ledger in self._ledgers.values()),
            batches=self.batches,
            gaps=self.gaps,
            resyncs=self.resyncs,
            restarts=self.restarts,
            unreadable=self.unreadable,
            lag_s=self.lag_s,
        )

    def _state(self) -> tuple[State, str]:
        if self._wrong:
            return State.WRONG, self._wrong
        if self._candidate.part is Part.NONE:
            return State.WAITING, ""
        quiet = time.monotonic() - self._heard_s
        if quiet > SILENT_S and self._served_tokens >= SILENT_BLOCKS * self._size:
            return State.SILENT, (
                f"engine {self.source.engine} computes prompts but no KV event came from {self.source.endpoint} for "
                f"{quiet:.0f} s: check that its endpoint in --kv-events-config can be reached from here"
            )
        return (State.FOLLOWING if self._candidate.part is Part.LEADER else State.STANDBY), ""

    # Election.

    async def _elect(self) -> None:
        started_s = time.monotonic()
        while True:
            before = self._candidate.part
            try:
                part = await self._candidate.stand()
            except Unavailable:
                part = before  # nobody else can take it either; what was missed is stored again
            if part is not before:
                log.info("events of %s rank %d: %s", self.source.engine, self.source.rank, part)
                if part is not Part.LEADER:
                    self._writers.clear()
            if time.monotonic() - started_s > LEASE_S + RENEW_S:
                self.settled = True  # a dead leader's lease would be ours by now
            self._verify = True
            self._wake.set()
            await asyncio.sleep(RENEW_S)

    # The stream.

    async def _follow(self) -> None:
        while True:
            await self._awake()
            if self._candidate.part is Part.NONE:
                self._forget_all()
                continue
            stream = Stream(self.source)
            try:
                await self._listen(stream)
            finally:
                stream.close()

    async def _awake(self) -> None:
        await self._wake.wait()
        self._wake.clear()

    async def _listen(self, stream: Stream) -> None:
        """Follow until another gateway does."""
        self._next = 0  # nothing is known: if the engine cannot be asked now, the next batch is a gap from the first on
        await self._catch_up(stream, 0)
        tasks: dict[str, asyncio.Task[Any]] = {}
        waits: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "wake": self._awake,
            "back": stream.reconnected,
            "trailing": lambda: self._trailing(stream),
            "messages": lambda: stream.receive(BATCH_S),
        }
        try:
            while self._candidate.part is not Part.NONE:
                for name, wait in waits.items():
                    if name not in tasks:
                        tasks[name] = asyncio.create_task(wait())
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                done = {name: tasks.pop(name).result() for name in list(tasks) if tasks[name].done()}
                if self._reset:
                    await self._start_again()
                    await self._catch_up(stream, 0)  # it may be there again, and have told something already
                if "back" in done:
                    await self._compare(stream)
                await self._take_all(stream, [*done.get("trailing", []), *done.get("messages", [])])
                await self._write()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _trailing(self, stream: Stream) -> list[Message]:
        """Wait until nothing has come for a while after something did; what the engine has told since then."""
        while True:
            await asyncio.sleep(QUIET_S)
            if self._next not in (0, self._sure) and time.monotonic() - self._heard_s > QUIET_S:
                break
        self._sure = self._next
        return await self._told(stream) or []

    async def _compare(self, stream: Stream) -> None:
        """The publisher is there again: go on if it still knows the last batch that we know, else it is a new one."""
        if not self._next:
            await self._catch_up(stream, 0)
            return
        told = await self._told(stream)
        if told is not None:
            await self._take_all(stream, told)
        else:
            await self._start_again()
            await self._catch_up(stream, 0)

    async def _told(self, stream: Stream) -> list[Message] | None:
        """What the engine has told since the last batch that we know; None if it does not know that one."""
        known = self._next - 1
        told = await stream.replay(known)
        return told[1:] if told and told[0].number == known and not self._later(told[0]) else None

    async def _catch_up(self, stream: Stream, first: int) -> bool:
        """Ask for what was published from `first` on; False if the beginning of it is gone."""
        replayed = await stream.replay(first)
        whole = bool(replayed) and replayed[0].number == first
        if not whole and first:
            await self._start_again(restart=False)
        for message in replayed:
            self._next = message.number
            self._take(message)
        await self._write()
        return whole

    async def _take_all(self, stream: Stream, messages: list[Message]) -> None:
        for message in messages:
            if message.number > self._next:
                self.gaps += 1
                lost = message.number - self._next
                while message.number > self._next:
                    if await self._catch_up(stream, self._next):
                        continue
                    self.resyncs += 1
                    log.warning(
                        "events of %s rank %d: lost %d batches that cannot be replayed; starting again",
                        *(self.source.engine, self.source.rank, lost),
                    )
                    self._next = max(self._next, message.number)
            if message.number < self._next and not await self._backwards(message):
                continue  # replayed already
            self._take(message)

    async def _backwards(self, message: Message) -> bool:
        """True if a lower number is the first word of a new incarnation."""
        if not self._later(message):
            return False
        await self._start_again()
        return True

    def _later(self, message: Message) -> bool:
        """Whether a message was made after the last one that was taken."""
        try:
            batch, _ = decode(message.payload)
        except msgspec.DecodeError:
            return False
        return batch.ts > self._last_ts

    def _take(self, message: Message) -> None:
        self._next = message.number + 1
        self._heard_s = time.monotonic()
        self._served_tokens = 0
        self.batches += 1
        try:
            batch, unreadable = decode(message.payload)
        except msgspec.DecodeError:
            self.unreadable += 1
            return
        self.unreadable += unreadable
        self._last_ts = max(self._last_ts, batch.ts)
        self.lag_s = max(0.0, time.time() - batch.ts)
        self._read(batch)

    def _read(self, batch: Batch) -> None:
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                self._forget_all()
                continue
            tier = (event.medium or GPU).lower()
            ledger = self._ledgers.get(tier)
            if ledger is None:
                ledger = self._ledgers[tier] = Ledger(self._model, self._size)
            if isinstance(event, BlockStored):
                if not self._counts(event):
                    continue
                changes = ledger.stored(event)
            else:
                changes = ledger.removed(event) if self._groups.get(event.group_idx, True) else []
            if changes and tier in self._writers:
                self._todo.setdefault(tier, []).extend(changes)

    def _counts(self, event: BlockStored) -> bool:
        """Whether a store says something about prefixes that we can look up."""
        full = event.kv_cache_spec_kind in FULL
        self._groups[event.group_idx] = full
        if not full:
            return False
        if event.block_size != self._size:
            if not self._wrong:
                self._wrong = (
                    f"engine {self.source.engine} publishes block_size {event.block_size}, the others of model "
                    f"{self._model} have {self._size}: give all of them the same --block-size"
                )
                log.warning("%s", self._wrong)
            return False
        return len(event.token_ids) == len(event.block_hashes) * self._size

    async def _start_again(self, restart: bool = True) -> None:
        """The engine holds nothing that we know of: its credit is gone before anything else is asked."""
        self._reset = False
        self.restarts += restart
        self._next = self._sure = 0
        if restart:
            self._last_ts = 0.0
        self._wrong = ""
        self._forget_all()
        await self._write()

    def _forget_all(self) -> None:
        for ledger in self._ledgers.values():
            ledger.clear()
        self._writers.clear()
        self._todo.clear()

    # The index.

    async def _write(self) -> None:
        """Bring the index up to the ledgers. What cannot be written now is stored again as a whole later."""
        if self._candidate.part is not Part.LEADER:
            self._todo.clear()
            return
        verify, self._verify = self._verify, False
        for tier, ledger in self._ledgers.items():
            changes = self._todo.pop(tier, [])
            try:
                if (writer := self._writers.get(tier)) is None:
                    holder = Holder(self.source.engine, self.source.rank, tier)
                    writer = await self._index.open(holder)
                    changes = ledger.everything()
                if changes or verify:
                    await writer.apply(changes)
                self._writers[tier] = writer
            except (Unavailable, Lost, UnknownParent) as error:
                log.debug("events of %s: %s: %s", self.source.engine, type(error).__name__, error)
                self._writers.pop(tier, None)
        self.settled = True

    async def close(self, forget: bool = False) -> None:
        """Follow no more. `forget`: what we wrote is taken back; another who follows on writes it again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Unavailable):
            if forget and self._candidate.part is Part.LEADER:
                for writer in self._writers.values():
                    await writer.close()
            await self._candidate.resign()
