"""The simulation: requests arrive, a policy places them, modelled engines serve them; one heap of events, no clock."""

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from engines.model.core import Core
from engines.model.sequence import Sequence as Work
from load.replay.fleet import Shape
from load.replay.knowledge import Knowledge, Known
from load.replay.sight import Guess
from load.replay.state import Job, Node
from load.replay.trace import Ask
from load.slo import Slo
from policies.contract import Policy


class Slow(NamedTuple):
    """A fault: an engine takes `factor` times as long for a while."""

    engine: str
    factor: float
    from_s: float
    to_s: float


class TooMany(Exception):
    """More requests missed their objective than may."""


class Simulation:
    """One run. `progress` is told how many requests have ended, now and then."""

    def __init__(
        self,
        asks: Sequence[Ask],
        shape: Shape,
        policy: Policy,
        *,
        kv_blocks: int,
        block_tokens: int,
        knowledge: Knowledge | None = None,
        faults: Sequence[Slow] = (),
        early_hits: bool = False,
        progress: Callable[[int], None] = lambda ended: None,
        slo: Slo = Slo(),  # noqa: B008  frozen
        may_miss: float = math.inf,
    ) -> None:
        """With `may_miss`, a run in which more requests than that miss their objective is broken off.

        With `early_hits` a prompt counts as cached from when it is queued, as some simulators have it.
        """
        told = knowledge or Knowledge()
        self._asks = asks
        self._shape = shape
        self._policy = policy
        self._gateways = told.gateways
        self._progress = progress
        self._slo, self._may_miss = slo, may_miss
        self._missed = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self.now_s = 0.0
        self.jobs: list[Job] = []
        self.refused = self.saturated = 0
        self.nodes: dict[str, Node] = {}
        for index, member in enumerate(shape.members):
            core = Core(
                member.profile, kv_blocks, block_tokens, on_first=self._first, on_end=self._ended, on_room=self._pull
            )
            self.nodes[member.name] = Node(index, member, core, told.gateways if told.private else 1)
        self.known = Known(told, shape, self.nodes, block_tokens, slo, self._clock)
        self.kv_bytes_per_token = self.known.kv_bytes_per_token
        self._early = Guess(len(self.nodes), kv_blocks) if early_hits else None
        self._block_tokens = block_tokens
        self._faults = faults
        self._followers: dict[int, list[int]] = {}
        self._ended_count = 0

    def run(self) -> None:
        """Until the last request has ended. Raises `TooMany`."""
        for index, ask in enumerate(self._asks):
            if ask.after >= 0:
                self._followers.setdefault(ask.after, []).append(index)
            else:
                self._at(ask.at_s, self._arrive, index)
        for fault in self._faults:
            self._at(fault.from_s, self._slow, self.nodes[fault.engine], fault.factor)
            self._at(fault.to_s, self._slow, self.nodes[fault.engine], 1.0)
        heap = self._heap
        while heap:
            self.now_s, _, act, args = heappop(heap)
            act(*args)

    def _clock(self) -> float:
        return self.now_s

    def _at(self, when_s: float, act: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heappush(self._heap, (when_s, self._order, act, args))

    # Engines.

    def _slow(self, node: Node, factor: float) -> None:
        """From its next step on."""
        node.core.slow = factor

    def _touch(self, node: Node) -> None:
        """Something was asked of an engine: its next event may be another one now."""
        core = node.core
        if core.due_s != node.scheduled_s:
            node.scheduled_s = core.due_s
            if core.due_s < math.inf:
                self._at(core.due_s, self._fire, node, core.due_s)
        self.known.changed(node)

    def _fire(self, node: Node, due_s: float) -> None:
        if node.core.due_s == due_s:
            node.scheduled_s = math.nan
            node.core.fire()
            self._touch(node)

    # The journey.

    def _arrive(self, index: int) -> None:
        ask, now_s = self._asks[index], self.now_s
        job = Job(index, ask, now_s, index % self._gateways)
        self.jobs.append(job)
        fleet = self.known.fleet(ask, job.gateway)
        placement = self._policy.place(self.known.request(ask), fleet)
        self.saturated += bool(placement.saturated)
        job.decode = self.nodes[placement.decode]
        job.prefill = self.nodes[placement.prefill] if placement.prefill else None
        self.known.placed(job, fleet)
        work = Work(job, ask.prompt, ask.answer if job.prefill is None else 1, ask.names)
        node = job.prefill or job.decode
        self._at(now_s + node.member.profile.leg_s, self._submit, node, work)

    def _submit(self, node: Node, work: Work) -> None:
        if self._early is not None and not work.waits:
            names = work.names[: (work.prompt - 1) // self._block_tokens]
            work.granted = dict(self._early.leads(names, self.now_s)).get(node.index, 0) * self._block_tokens
            self._early.sent(node.index, names)
        try:
            node.core.submit(work, self.now_s)
        except ValueError:
            self.refused += 1
            job: Job = work.owner  # type: ignore[assignment]
            self.known.prefilled(job)
            self._left(job)
        self._touch(node)

    def _first(self, work: Work, now_s: float) -> None:
        job: Job = work.owner  # type: ignore[assignment]
        if job.prefill is None or work.waits:
            job.first_s = now_s
            self.known.prefilled(job)
            self.known.began(job)
        if not work.waits:
            job.cached = work.cached
        else:
            self.known.pulled(job)

    def _ended(self, work: Work, now_s: float) -> None:
        job: Job = work.owner  # type: ignore[assignment]
        if job.prefill is not None and not work.waits:
            job.source = work
            self.known.prefilled(job)
            ask = job.ask
            second = Work(job, ask.prompt, ask.answer, ask.names, waits=True)
            self._at(now_s + job.decode.member.profile.second_leg_s, self._submit, job.decode, second)
            return
        job.last_s = now_s
        self.known.streamed(job)
        job.decode.core.release(work, now_s)
        self._left(job)

    def _pull(self, work: Work, now_s: float) -> None:
        """The decode engine has room: what it lacks begins to move, after what moves already."""
        job: Job = work.owner  # type: ignore[assignment]
        source, target = job.prefill, job.decode
        assert source is not None
        job.transferred = max(0, job.ask.prompt - work.cached)
        link = self._shape.link(source.member.host, target.member.host)
        took_s = link.latency_us * 1e-6 + job.transferred * self.kv_bytes_per_token * 8e-9 / link.gbps
        end_s = max(self.now_s, source.link_free_s, target.link_free_s) + took_s
        source.link_free_s = target.link_free_s = end_s
        self._at(end_s, self._pulled, job, work)

    def _pulled(self, job: Job, work: Work) -> None:
        source, target = job.prefill, job.decode
        assert source is not None and job.source is not None
        source.core.release(job.source, self.now_s)
        self._touch(source)
        target.core.pulled(work, self.now_s)
        self._touch(target)

    def _left(self, job: Job) -> None:
        """The request is over, well or not."""
        self.known.left(job)
        self._ended_count += 1
        if not self._slo.met(job.first_s - job.arrived_s, job.last_s - job.first_s, job.ask.answer):
            self._missed += 1
            if self._missed > self._may_miss:
                raise TooMany
        if self._ended_count % 256 == 0:
            self._progress(self._ended_count)
        for follower in self._followers.pop(job.index, ()):
            ask = self._asks[follower]
            self._at(max(ask.at_s, self.now_s + ask.think_s), self._arrive, follower)
