"""The simulation: requests arrive, a policy places them, modelled engines serve them; one heap of events, no clock."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from engines.model.core import Core
from engines.model.sequence import Sequence as Work
from gateway.fleet.links import NOMINAL_BYTES, Links
from gateway.fleet.pace import Pace
from gateway.fleet.traffic import Traffic
from load.replay.fleet import Member, Shape
from load.replay.slo import Slo
from load.replay.trace import Ask
from policies.contract import Engine, Fleet, Policy, Request, Speed


class Booked:
    """What gateways have in flight on one engine."""

    __slots__ = (
        "coming_requests",
        "coming_tokens",
        "decode_requests",
        "decode_tokens",
        "prefill_requests",
        "prefill_s",
        "prefill_tokens",
    )

    def __init__(self) -> None:
        self.coming_requests = self.coming_tokens = 0
        self.prefill_requests = self.prefill_tokens = self.decode_requests = self.decode_tokens = 0
        self.prefill_s = 0.0


class Node:
    """One engine and what is around it."""

    def __init__(self, member: Member, core: Core, gateways: int) -> None:
        self.member = member
        self.core = core
        self.booked = [Booked() for _ in range(gateways)]
        self.scheduled_s = math.inf
        self.link_free_s = 0.0
        self.seen: set[int] | None = None
        """What gateways know of its cache; None: all."""
        self.unseen: deque[tuple[float, int, bool]] = deque()


class Job:
    """One request on its journey. Times are absolute, seconds."""

    __slots__ = (
        "arrived_s",
        "ask",
        "beside",
        "booked_s",
        "cached",
        "decode",
        "first_s",
        "gateway",
        "index",
        "last_s",
        "new",
        "prefill",
        "prefilled",
        "source",
        "transferred",
        "waits_s",
    )

    def __init__(self, index: int, ask: Ask, arrived_s: float, gateway: int) -> None:
        self.index = index
        self.ask = ask
        self.arrived_s = arrived_s
        self.gateway = gateway
        self.prefill: Node | None = None
        self.decode: Node
        self.source: Work | None = None
        self.new = self.cached = self.transferred = 0
        self.booked_s = self.waits_s = 0.0
        self.beside = 0
        self.prefilled = False
        self.first_s = self.last_s = math.nan


class Knowledge:
    """What gateways know, and when. The default is exact and shared."""

    def __init__(
        self, gateways: int = 1, private: bool = False, event_delay_s: float = 0.0, learned: bool = False
    ) -> None:
        self.learned = learned
        """Speeds are fitted from what was seen, as a gateway does, and not told."""
        self.gateways = gateways
        self.private = private
        """Each gateway knows its own load only."""
        self.event_delay_s = event_delay_s


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
        progress: Callable[[int], None] = lambda ended: None,
        slo: Slo = Slo(),  # noqa: B008  frozen
        may_miss: float = math.inf,
    ) -> None:
        """With `may_miss`, a run in which more requests than that miss their objective is broken off."""
        self._asks = asks
        self._shape = shape
        self._policy = policy
        self._size = block_tokens
        self._knowledge = knowledge or Knowledge()
        self._progress = progress
        self._slo, self._may_miss = slo, may_miss
        self._missed = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self.now_s = 0.0
        self.jobs: list[Job] = []
        self.refused = self.saturated = 0
        self.nodes: dict[str, Node] = {}
        shared = not self._knowledge.private
        for member in shape.members:
            core = Core(
                member.profile, kv_blocks, block_tokens, on_first=self._first, on_end=self._ended, on_room=self._pull
            )
            node = Node(member, core, 1 if shared else self._knowledge.gateways)
            if self._knowledge.event_delay_s:
                node.seen, core.blocks.changes = set(), []
            self.nodes[member.name] = node
        self._speeds: dict[str, Speed] = {name: node.member.profile.speed for name, node in self.nodes.items()}
        self._faults = faults
        self._paces = {name: Pace(clock=self._clock) for name in self.nodes} if self._knowledge.learned else {}
        self._followers: dict[int, list[int]] = {}
        self._traffic = [Traffic(slo.ttft_s, slo.tpot_s, self._clock) for _ in range(self._knowledge.gateways)]
        self._links = Links(shape.links, self._clock) if self._knowledge.learned else None
        self.kv_bytes_per_token = shape.members[0].profile.kv_bytes_per_token
        self._ended_count = 0
        self._prefillers = sum(member.role.prefills for member in shape.members)

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
        if core.blocks.changes:
            now_s = self.now_s
            node.unseen.extend((now_s, name, came) for name, came in core.blocks.changes)
            core.blocks.changes.clear()

    def _fire(self, node: Node, due_s: float) -> None:
        if node.core.due_s == due_s:
            node.scheduled_s = math.nan
            node.core.fire()
            self._touch(node)

    # The journey.

    def _arrive(self, index: int) -> None:
        ask, now_s = self._asks[index], self.now_s
        job = Job(index, ask, now_s, index % self._knowledge.gateways)
        self.jobs.append(job)
        placement = self._policy.place(self._request(ask), self._fleet(ask, job.gateway))
        self.saturated += bool(placement.saturated)
        job.decode = self.nodes[placement.decode]
        job.prefill = self.nodes[placement.prefill] if placement.prefill else None
        self._book(job)
        work = Work(job, ask.prompt, ask.answer if job.prefill is None else 1, ask.names)
        node = job.prefill or job.decode
        self._at(now_s + node.member.profile.leg_s, self._submit, node, work)

    def _request(self, ask: Ask) -> Request:
        return Request(
            model="model",
            prompt_tokens=ask.prompt,
            block_size=self._size,
            session=ask.session,
            prefix=ask.names[0] if ask.names else 0,
        )

    def _submit(self, node: Node, work: Work) -> None:
        try:
            node.core.submit(work, self.now_s)
        except ValueError:
            self.refused += 1
            job: Job = work.owner  # type: ignore[assignment]
            self._prefilled(job)
            self._left(job)
        self._touch(node)

    def _first(self, work: Work, now_s: float) -> None:
        job: Job = work.owner  # type: ignore[assignment]
        if job.prefill is None or work.waits:
            job.first_s = now_s
            self._prefilled(job)
        if not work.waits:
            job.cached = work.cached
        elif self._links is not None and not job.decode.booked[self._pool(job.gateway)].prefill_requests:
            assert job.prefill is not None and job.source is not None
            took_s = now_s - job.source.last_s
            self._links.pulled(job.prefill.member.host, job.decode.member.host, job.transferred, took_s)

    def _ended(self, work: Work, now_s: float) -> None:
        job: Job = work.owner  # type: ignore[assignment]
        if job.prefill is not None and not work.waits:
            job.source = work
            self._prefilled(job)
            ask = job.ask
            second = Work(job, ask.prompt, ask.answer, ask.names, waits=True)
            self._at(now_s + job.decode.member.profile.second_leg_s, self._submit, job.decode, second)
            return
        job.last_s = now_s
        if (pace := self._paces.get(job.decode.member.name)) is not None and job.ask.answer > 2:
            core = job.decode.core
            pace.streamed(core.running + 1, core.kv_tokens, (now_s - job.first_s) / (job.ask.answer - 1))
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
        if job.last_s == job.last_s:
            gap_s = (job.last_s - job.first_s) / (job.ask.answer - 1) if job.ask.answer > 1 else None
            self._traffic[job.gateway].ended(job.first_s - job.arrived_s, gap_s)
        booked = job.decode.booked[self._pool(job.gateway)]
        booked.decode_requests -= 1
        booked.decode_tokens -= job.ask.prompt
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

    # What a policy sees.

    def _pool(self, gateway: int) -> int:
        return gateway if self._knowledge.private else 0

    def _book(self, job: Job) -> None:
        node, ask = job.prefill or job.decode, job.ask
        cached = min(self._lead(node, ask), ask.prompt - 1)
        job.new = ask.prompt - cached
        pace = self._paces.get(node.member.name)
        speed = pace.base if pace is not None else self._speeds[node.member.name]
        job.booked_s = speed.prefill_s(job.new, cached)
        booked = node.booked[self._pool(job.gateway)]
        job.waits_s, job.beside = booked.prefill_s, booked.decode_requests - booked.coming_requests
        booked.prefill_requests += 1
        booked.prefill_tokens += job.new
        booked.prefill_s += job.booked_s
        booked = job.decode.booked[self._pool(job.gateway)]
        booked.decode_requests += 1
        booked.decode_tokens += ask.prompt
        if job.prefill is not None:
            booked.coming_requests += 1
            booked.coming_tokens += ask.prompt
        self._traffic[job.gateway].arrived(job.booked_s)

    def _prefilled(self, job: Job) -> None:
        if not job.prefilled:
            job.prefilled = True
            node = job.prefill or job.decode
            if (pace := self._paces.get(node.member.name)) is not None:
                took_s = self.now_s - job.arrived_s
                pace.prefilled(job.new, job.ask.prompt - job.new, job.waits_s, took_s, job.beside)
            booked = (job.prefill or job.decode).booked[self._pool(job.gateway)]
            booked.prefill_requests -= 1
            booked.prefill_tokens -= job.new
            booked.prefill_s = max(0.0, booked.prefill_s - job.booked_s)
            if job.prefill is not None:
                booked = job.decode.booked[self._pool(job.gateway)]
                booked.coming_requests -= 1
                booked.coming_tokens -= job.ask.prompt

    def _lead(self, node: Node, ask: Ask) -> int:
        """Leading tokens of a prompt that gateways believe an engine to hold."""
        names = ask.names[: (ask.prompt - 1) // self._size]
        if node.seen is None:
            return node.core.blocks.lead(names) * self._size
        until_s, unseen, seen = self.now_s - self._knowledge.event_delay_s, node.unseen, node.seen
        while unseen and unseen[0][0] <= until_s:
            _, name, came = unseen.popleft()
            (seen.add if came else seen.discard)(name)
        count = 0
        for name in names:
            if name not in seen:
                break
            count += 1
        return count * self._size

    def _fleet(self, ask: Ask, gateway: int) -> Fleet:
        pool = self._pool(gateway)
        paces = self._paces
        engines = []
        for name, node in self.nodes.items():
            booked = node.booked[pool]
            pace = paces.get(name)
            if pace is not None:
                pace.rest()
            engines.append(
                Engine(
                    name=name,
                    role=node.member.role.value,
                    host=node.member.host,
                    prefill_requests=booked.prefill_requests,
                    prefill_tokens=booked.prefill_tokens,
                    prefill_s=booked.prefill_s * (pace.lateness if pace is not None else 1.0),
                    decode_requests=booked.decode_requests,
                    decode_tokens=booked.decode_tokens,
                    coming_requests=booked.coming_requests,
                    coming_tokens=booked.coming_tokens,
                    cached_tokens=self._lead(node, ask),
                    kv_tokens=node.core.blocks.capacity * self._size,
                    speed=pace.speed if pace is not None else self._speeds[name],
                )
            )
        told = [traffic.rates() for traffic in self._traffic]  # gateways tell each other, even where loads are private
        links = self._links
        return Fleet(
            engines=tuple(engines),
            links=self._shape.links if links is None else links,
            now_s=self.now_s,
            kv_bytes_per_token=self.kv_bytes_per_token if links is None else NOMINAL_BYTES,
            arrivals_per_s=sum(arrivals for arrivals, _ in told),
            prefill_load=sum(work for _, work in told) / max(1, self._prefillers),
            itl_price=self._traffic[gateway].itl_price,
        )
