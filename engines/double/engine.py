"""The engine's loop: admits sequences, prefills them in chunks, decodes all of them a token at a time, frees blocks.

Follows vLLM's v1 scheduler where a gateway can tell: one step at a time for the whole batch, first come first served,
blocks named and cached as they fill, preemption of the youngest when blocks run out.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many

from engines.double import handover
from engines.double.events import Publisher
from engines.double.faults import Faults
from engines.double.leases import Leases
from engines.double.limits import Limits
from engines.double.pool import Block, Content, Pool
from engines.double.sequence import Sequence
from engines.double.stats import Stats
from engines.double.timing import Timing
from engines.double.transfer import SideChannel
from engines.double.watchers import Watchers

BEHIND_S = 0.1
"""So far behind its time an engine catches up; what is lost beyond that is lost."""

_log = logging.getLogger(__name__)


class EngineDeadError(Exception):
    """The engine has died; its server goes down with it."""


class Engine:
    """One incarnation of an engine: from start to death it has one id, one pool and one set of counters."""

    def __init__(
        self,
        engine_id: str,
        limits: Limits,
        timing: Timing,
        faults: Faults,
        *,
        lease_s: float,
        channel: SideChannel,
        publisher: Publisher | None,
        on_death: Callable[[], None],
    ) -> None:
        self.id = engine_id
        self.limits = limits
        self.timing = timing
        self.faults = faults
        self.channel = channel
        self.publisher = publisher
        self.stats = Stats()
        self.pool = Pool(limits.num_blocks, limits.block_size, publisher)
        self.leases = Leases(self.pool, self.stats, lease_s, self._changed)
        self.dead = False
        self._on_death = on_death
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._prefilling: dict[Sequence, int] = {}
        self._loads: dict[Sequence, asyncio.Task[None] | None] = {}
        self._notices: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()
        self._watchers = Watchers(self.stats)
        self._heart = handover.Heart(self.leases, faults)
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._broke)

    def __repr__(self) -> str:
        return f"<Engine {self.id} {len(self._running)} running, {len(self._waiting)} waiting, {self.pool}>"

    def admits(self, count: int) -> bool:
        """Whether `count` more sequences are within the queue's limit."""
        limit = self.limits.max_num_queued_reqs
        return limit is None or self.stats.busy + count <= limit

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; its tokens come from `sequence.next()`. Raises `EngineDeadError`."""
        if self.dead:
            raise EngineDeadError
        sequence.arrived_s = self._loop.time()
        self.stats.received += 1
        self._waiting.append(sequence)
        self._heart.watch(sequence)
        self._work.set()
        self._changed()

    def abort(self, sequence: Sequence, reason: str = "abort") -> None:
        """Drop a sequence that nobody needs any longer and free its blocks now. Nothing if it has finished.

        A prefill engine does not keep the blocks of an aborted sequence.
        """
        if sequence.finish is not None:
            return
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence.params and sequence.params.get("do_remote_prefill"):
            self.reject(sequence.params)
        sequence.params = None
        self._finish(sequence, reason)

    def reject(self, params: dict[str, object]) -> None:
        """A request with remote blocks never got to run: tell their owner that they are not wanted."""
        task = self._loop.create_task(handover.refuse(params))
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks; False while any block is in use or leased."""
        done = self.pool.reset()
        self._flush()
        return done

    async def until(self, condition: Callable[[Stats], bool]) -> None:
        """Wait until the counters satisfy `condition`; looked at whenever a sequence or a lease changes state.

        Raises `EngineDeadError` if the engine dies first.
        """
        self.measure()
        await self._watchers.until(condition)

    async def close(self) -> None:
        """Stop at once. Sequences end with `error`, leases are forgotten, watchers are let go."""
        self.dead = True
        self.leases.close()
        tasks = [self._task, *self._notices, *self._heart.tasks(), *(task for task in self._loads.values() if task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sequence in [*self._running, *self._waiting, *self._prefilling, *self._loads]:
            sequence.end("error")
        self._running, self._prefilling, self._loads = [], {}, {}
        self._waiting.clear()
        self._changed()
        self._watchers.close(EngineDeadError())

    def die(self) -> None:
        """The engine core hit an assertion: the process ends, as vLLM's does."""
        if not self.dead:
            self.dead = True
            self._on_death()

    def _broke(self, task: asyncio.Task[None]) -> None:
        """The loop has ended; by itself it never does."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%r: its loop broke", self, exc_info=error)
            self.die()

    # What a prefill engine does for decode engines (the side channel's `Owner`).

    def contents(self, blocks: Many[int]) -> list[Content]:
        return [self.pool.blocks[number].content for number in blocks]

    def notified(self, request: str) -> None:
        self.leases.notify(request)

    def heard(self, requests: Many[str]) -> None:
        self.leases.extend(requests)

    # The loop.

    async def _run(self) -> None:
        """A step begins when the one before it was due to end: what we take ourselves does not make the engine slow."""
        ends_s = 0.0
        while True:
            chunks, duration = self._plan()
            batch = list(self._running)
            if not chunks and not batch:
                self._flush()
                self._work.clear()
                await self._work.wait()
                ends_s = 0.0
                continue
            duration *= self.faults.slow
            now = self._loop.time()
            ends_s = max(ends_s, now - BEHIND_S) + duration if ends_s else now + duration
            await asyncio.sleep(ends_s - now)
            self._decode(batch, duration)
            self._prefill(chunks)
            self._flush()

    def _admit(self, left: int) -> Iterator[tuple[Sequence, int]]:
        """Give waiting sequences their blocks, in order, as long as there are seats, blocks, and tokens `left` in the
        step; yields their first chunks. Who waits behind a long prompt finds in the cache what that has computed.
        """
        limits = self.limits
        while left > 0 and self._waiting and len(self._running) + len(self._prefilling) < limits.max_num_seqs:
            sequence = self._waiting[0]
            tokens = sequence.tokens
            hit = self.pool.find(sequence.names[: (len(tokens) - 1) // limits.block_size])
            self.pool.hold(hit)
            more = self.pool.take(-(-len(tokens) // limits.block_size) - len(hit))
            if more is None:
                self.pool.release(hit)
                break
            self._waiting.popleft()
            sequence.tape.blocks = [*hit, *more]
            local = len(hit) * limits.block_size
            pulls = handover.wants_pull(sequence)
            if not sequence.preempted:
                sequence.found(local, len(tokens) - local if pulls else 0)
                self.stats.looked_up(len(tokens), local, sequence.external_tokens)
            if pulls:
                self._load(sequence, len(hit))
            else:
                sequence.tape.seek(local)
                self._prefilling[sequence] = local
                yield sequence, (count := self._take(sequence, left))
                left -= count
            self._changed()

    def _plan(self) -> tuple[list[tuple[Sequence, int]], float]:
        """The prompt chunks of the next step, and the step's length in seconds."""
        timing = self.timing
        left, duration, joins = self.limits.max_num_batched_tokens - len(self._running), 0.0, 0
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self._prefilling:
            if left <= 0:
                break
            chunks.append((sequence, self._take(sequence, left)))
            left -= chunks[-1][1]
        chunks += self._admit(left)
        for sequence, count in chunks:
            duration += timing.prefill_s(count, self._prefilling[sequence] + count / 2)
            joins += sequence.external_tokens > 0 and sequence.outputs == 0
        held = sum(sequence.tape.count for sequence in self._running) if timing.decode_c_s else 0
        if self._running:
            duration *= timing.mix
        return chunks, timing.step_s + duration + timing.join_s * joins + timing.decode_s(len(self._running), held)

    def _take(self, sequence: Sequence, left: int) -> int:
        """The next chunk of a prompt, of at most `left` tokens. Others find its blocks at once: they come after it, if
        need be in the same step.
        """
        done = self._prefilling[sequence]
        count = min(left, len(sequence.tokens) - done)
        sequence.tape.write(sequence.tokens[done : done + count])
        self._cache(sequence, done)
        return count

    def _prefill(self, chunks: list[tuple[Sequence, int]]) -> None:
        for sequence, count in chunks:
            if sequence not in self._prefilling:
                continue
            done = self._prefilling[sequence]
            if done + count < len(sequence.tokens):
                self._prefilling[sequence] = done + count
                continue
            del self._prefilling[sequence]
            self._running.append(sequence)
            now = self._loop.time()
            if not sequence.preempted:
                self.stats.first_token_s.observe(now - sequence.arrived_s)
            sequence.last_token_s = now
            self._sample(sequence)
        if chunks:
            self._changed()

    def _decode(self, batch: list[Sequence], duration: float) -> None:
        size = self.limits.block_size
        given = 0
        for sequence in batch:
            if sequence.finish is not None or not sequence.tape.blocks:
                continue
            tape = sequence.tape
            if tape.count == len(tape.blocks) * size and not self._grow(sequence):
                continue
            tape.write(sequence.tokens[-1:])
            if not tape.count % size:
                sequence.extend_names()
                self._cache(sequence, tape.count - size)
            self._sample(sequence)
            given += 1
        if given:
            self.stats.between_tokens_s.observe(duration, given)

    def _grow(self, sequence: Sequence) -> bool:
        """One more block, taken from the youngest sequence if need be. False if that was this one."""
        while (more := self.pool.take(1)) is None:
            victim = self._running.pop()
            self.pool.release(victim.tape.blocks)
            victim.tape.blocks = []
            victim.preempted = True
            victim.extend_names()
            self._waiting.appendleft(victim)
            self.stats.preemptions += 1
            self._changed()
            if victim is sequence:
                return False
        sequence.tape.blocks.extend(more)
        return True

    def _sample(self, sequence: Sequence) -> None:
        """The next token, and whether it is the last."""
        ends = sequence.sample(self.limits.eos_one_in, self.limits.max_model_len)
        self.stats.generated += 1
        if ends is not None:
            self._finish(sequence, *ends)

    def _cache(self, sequence: Sequence, start: int) -> None:
        """Enter what has become full since `start` tokens into the prefix cache."""
        size = self.limits.block_size
        first, full = start // size, sequence.tape.count // size
        if first < full:
            tokens = sequence.tokens[first * size : full * size]
            self.pool.cache(sequence.tape.blocks, sequence.names[:full], first, tokens, sequence.salt, sequence.lora)

    # Blocks that come from another engine.

    def _load(self, sequence: Sequence, cached: int) -> None:
        """Start to pull the blocks after the first `cached` ones."""
        params = sequence.params or {}
        params["do_remote_prefill"] = False
        if not params.get("remote_block_ids"):
            self.die()
        elif not handover.complete(params):
            self._loads[sequence] = None
        else:
            self._loads[sequence] = self._loop.create_task(self._pull(sequence, cached))

    async def _pull(self, sequence: Sequence, cached: int) -> None:
        blocks: list[Block] = sequence.tape.blocks
        try:
            await handover.pull(sequence, blocks[cached:], self.limits, self.timing, self.faults, self.stats)
        except handover.PullFailedError:
            self.stats.transfers_failed += 1
            await asyncio.sleep(self.timing.unreachable_s)
            self._end_load(sequence, "error")
        except handover.TooManyBlocksError:
            self.die()
        else:
            if sequence.finish is not None:
                self._end_load(sequence, sequence.finish)
                return
            del self._loads[sequence]
            size = self.limits.block_size
            count = len(sequence.tokens)
            sequence.tape.count = count
            self._cache(sequence, cached * size)
            sequence.tape.seek(count - 1)
            self._heart.forget(sequence)
            self._prefilling[sequence] = count - 1
            self._work.set()
            self._changed()

    def _end_load(self, sequence: Sequence, reason: str) -> None:
        self._loads.pop(sequence, None)
        self._finish(sequence, reason)

    # Ends.

    def _finish(self, sequence: Sequence, reason: str, stop_reason: int | None = None) -> None:
        if sequence.finish is None:
            self.stats.finished[reason] += 1
            self.stats.request_s.observe(self._loop.time() - sequence.arrived_s)
            self._heart.forget(sequence)
        with contextlib.suppress(ValueError):
            self._running.remove(sequence)
        self._prefilling.pop(sequence, None)
        task = self._loads.get(sequence)
        if task is None:
            self._loads.pop(sequence, None)
            blocks, sequence.tape.blocks = sequence.tape.blocks, []
            if blocks and reason in ("stop", "length") and handover.keeps(sequence):
                sequence.answer_params = handover.offer(self.id, self.channel, sequence, blocks)
                self.leases.begin(sequence.id, blocks)
            else:
                self.pool.release(blocks)
        if sequence.finish is None:
            sequence.end(reason, stop_reason)
        self._work.set()
        self._changed()

    def _flush(self) -> None:
        if self.publisher is not None:
            self.publisher.flush()

    def measure(self) -> None:
        stats = self.stats
        stats.running = len(self._running) + len(self._prefilling)
        stats.waiting = len(self._waiting)
        stats.loading = sum(sequence.finish is None for sequence in self._loads) if self._loads else 0
        stats.usage = self.pool.usage

    def measured(self) -> Stats:
        """Its counters, with gauges up to date."""
        self.measure()
        return self.stats

    def _changed(self) -> None:
        self.measure()
        self._watchers.look()
