"""What gateways know of the fleet, and when: their bookings, the caches as they see them, speeds told or fitted."""

from collections.abc import Callable, Mapping, Sequence
from math import floor

from msgspec.structs import replace

from gateway.fleet.links import NOMINAL_BYTES, Links
from gateway.fleet.pace import Pace
from gateway.fleet.traffic import Traffic
from load.replay.fleet import Shape
from load.replay.sight import Guess, Sight
from load.replay.state import Booked, Job, Node
from load.replay.trace import Ask
from load.slo import Slo
from policies.contract import Engine, Fleet, Link, Request, Speed

LOOK_S = 10.0
"""Between two looks at engines' own metrics."""


class Knowledge:
    """How much gateways know. The default is exact and shared."""

    def __init__(
        self,
        gateways: int = 1,
        private: bool = False,
        event_delay_s: float = 0.0,
        learned: bool = False,
        scraped_s: float = 0.0,
        approximate: bool = False,
    ) -> None:
        self.gateways = gateways
        self.private = private
        """Each gateway knows its own load only."""
        self.event_delay_s = event_delay_s
        self.learned = learned
        """Speeds are fitted from what was seen, as a gateway does, and not told."""
        self.scraped_s = scraped_s
        """Load is known as it was when this many seconds last had passed; if private, that of the others."""
        self.approximate = approximate
        """No KV events: each gateway guesses from what it has placed; those that share do it together."""


class Known:
    """The knowledge of all gateways of one run. `clock` says what time it is."""

    def __init__(
        self,
        told: Knowledge,
        shape: Shape,
        nodes: Mapping[str, Node],
        block_tokens: int,
        slo: Slo,
        clock: Callable[[], float],
    ) -> None:
        self._told = told
        self._shape = shape
        self._nodes = list(nodes.values())
        self._size = block_tokens
        self._clock = clock
        self._prefillers = max(1, sum(member.role.prefills for member in shape.members))
        self._pools = told.gateways if told.private else 1
        self.kv_bytes_per_token = shape.members[0].profile.kv_bytes_per_token
        self._speeds: list[Speed] = [node.member.profile.speed for node in self._nodes]
        kinds = {(node.member.role, node.member.profile): Pace(clock=clock) for node in self._nodes}
        self._paces = (
            [Pace(clock=clock, kind=kinds[node.member.role, node.member.profile]) for node in self._nodes]
            if told.learned
            else []
        )
        self._links = Links(shape.links, clock) if told.learned else None
        self._traffic = [Traffic(slo.ttft_s, slo.tpot_s, clock) for _ in range(told.gateways)]
        # Gateways tell each other, even where loads are private; the sum of decaying sums is that of all arrivals.
        self._all = self._traffic[0] if told.gateways == 1 else Traffic(slo.ttft_s, slo.tpot_s, clock)
        count = len(self._nodes)
        self._sights: list[Sight] = (
            [Guess(count, self._nodes[0].core.blocks.capacity) for _ in range(self._pools)]
            if told.approximate
            else [Sight(count, told.event_delay_s)]
        )
        for node in self._nodes:
            node.core.blocks.changes = None if told.approximate else []
        self._engines = [[self._engine(node, Booked()) for node in self._nodes] for _ in range(self._pools)]
        self._stale: list[set[int]] = [set() for _ in range(self._pools)]
        """Engines whose snapshot is out of date."""
        self.blocks_looked_up = self.events = self.bookings = 0
        """What a shared index and shared loads were asked and told; events are blocks that came or went."""
        self._moved: set[int] = set()
        """Engines whose load has changed since it was last scraped."""
        self._looked_at = self._scraped_at = 0
        self._scraped = [[Booked() for _ in self._nodes] for _ in range(self._pools)]

    # What a policy is given.

    def request(self, ask: Ask) -> Request:
        return Request(
            model="model",
            prompt_tokens=ask.prompt,
            block_size=self._size,
            session=ask.session,
            prefix=ask.names[0] if ask.names else 0,
        )

    def fleet(self, ask: Ask, gateway: int) -> Fleet:
        """As that gateway sees it for this request."""
        pool = self._pool(gateway)
        self._scrape()
        self._look()
        engines, stale = self._engines[pool], self._stale[pool]
        for pace in self._paces:
            pace.rest()
        for at in range(len(engines)) if self._paces else stale:
            node = self._nodes[at]
            engines[at] = self._engine(node, self._load(node, pool))
        stale.clear()
        seen = engines.copy()
        names = ask.names[: (ask.prompt - 1) // self._size]
        self.blocks_looked_up += len(names)
        sight = self._sights[pool if self._told.approximate else 0]
        for at, blocks in sight.leads(names, self._clock()):
            seen[at] = replace(seen[at], cached_tokens=blocks * self._size)
        arrivals, work = self._all.rates()
        links: Mapping[tuple[str, str], Link] = self._shape.links if self._links is None else self._links
        return Fleet(
            engines=tuple(seen),
            links=links,
            now_s=self._clock(),
            kv_bytes_per_token=self.kv_bytes_per_token if self._links is None else NOMINAL_BYTES,
            arrivals_per_s=arrivals,
            prefill_load=work / self._prefillers,
            itl_price=self._traffic[gateway].itl_price,
        )

    def _engine(self, node: Node, booked: Booked) -> Engine:
        """All but what is cached of a request."""
        pace = self._paces[node.index] if self._paces else None
        return Engine(
            name=node.member.name,
            role=node.member.role.value,
            host=node.member.host,
            prefill_requests=booked.prefill_requests,
            prefill_tokens=booked.prefill_tokens,
            prefill_s=booked.prefill_s * (pace.lateness if pace is not None else 1.0),
            decode_requests=booked.decode_requests,
            decode_tokens=booked.decode_tokens,
            coming_requests=booked.coming_requests,
            coming_tokens=booked.coming_tokens,
            prefill_since_s=booked.backlog.since_s,
            kv_tokens=int(node.core.blocks.capacity * self._size * node.sharing.factor),
            speed=pace.speed if pace is not None else self._speeds[node.index],
            cost=node.member.cost,
        )

    def _pool(self, gateway: int) -> int:
        return gateway if self._told.private else 0

    def _load(self, node: Node, pool: int) -> Booked:
        if not self._told.scraped_s:
            return node.booked[pool]
        known = Booked()
        known.add(self._scraped[pool][node.index])
        if self._told.private:
            known.add(node.booked[pool])
        return known

    def _scrape(self) -> None:
        """Called before anything changes, so what is scraped late is what was there in time."""
        if not self._told.scraped_s or (at := floor(self._clock() / self._told.scraped_s)) == self._scraped_at:
            return
        self._scraped_at = at
        for node in [self._nodes[index] for index in self._moved]:
            whole = Booked()
            for booked in node.booked:
                whole.add(booked)
            for pool, booked in enumerate(node.booked):
                others = Booked()
                others.add(whole)
                if self._told.private:
                    others.add(booked, -1)
                self._scraped[pool][node.index] = others
        for stale in self._stale:
            stale.update(self._moved)
        self._moved.clear()

    def _look(self) -> None:
        """What each engine says of its memory, now and then."""
        if (at := floor(self._clock() / LOOK_S)) == self._looked_at:
            return
        self._looked_at = at
        for node in self._nodes:
            blocks, before = node.core.blocks, node.sharing.factor
            booked = sum(one.decode_tokens - one.coming_tokens for one in node.booked)
            node.sharing.see(booked, blocks.used / blocks.capacity, blocks.capacity * self._size)
            if node.sharing.factor != before:
                for stale in self._stale:
                    stale.add(node.index)

    def _touched(self, node: Node, pool: int) -> Booked:
        """The books of an engine, about to be written."""
        self.bookings += 1
        self._scrape()
        self._moved.add(node.index)
        if not self._told.scraped_s or self._told.private:
            self._stale[pool].add(node.index)
        return node.booked[pool]

    # What gateways see of a request.

    def placed(self, job: Job, fleet: Fleet) -> None:
        """Book it. Its engines are chosen, from that snapshot."""
        node, ask, pool = job.prefill or job.decode, job.ask, self._pool(job.gateway)
        cached = min(fleet.engines[node.index].cached_tokens, ask.prompt - 1)
        job.new = ask.prompt - cached
        speed = self._paces[node.index].base if self._paces else self._speeds[node.index]
        job.booked_s = round(
            speed.prefill_s(job.new, cached), 6
        )  # as gateways count: what is left in the end is nothing
        booked, now_s = self._touched(node, pool), self._clock()
        pace = self._paces[node.index] if self._paces else None
        lateness, leg_s = (1.0, node.member.profile.leg_s) if pace is None else (pace.lateness, pace.overhead_s)
        job.alone = not booked.prefill_requests
        job.waits_s = max(0.0, booked.prefill_s - booked.backlog.done_s(now_s, lateness))
        job.beside = booked.decode_requests - booked.coming_requests
        booked.backlog.join(job, job.booked_s, now_s + leg_s)
        booked.prefill_requests += 1
        booked.prefill_tokens += job.new
        booked.prefill_s += job.booked_s
        booked = self._touched(job.decode, pool)
        booked.decode_requests += 1
        booked.decode_tokens += ask.prompt
        if job.prefill is not None:
            booked.coming_requests += 1
            booked.coming_tokens += ask.prompt
        self._traffic[job.gateway].arrived(job.booked_s)
        if self._all is not self._traffic[job.gateway]:
            self._all.arrived(job.booked_s)
        self._guess(job, ask.names[: ask.prompt // self._size])

    def _guess(self, job: Job, names: Sequence[int]) -> None:
        if self._told.approximate:
            sight = self._sights[self._pool(job.gateway)]
            assert isinstance(sight, Guess)
            for node in filter(None, (job.prefill, job.decode)):
                sight.sent(node.index, names)

    def prefilled(self, job: Job) -> None:
        """Its prefill is over, well or not."""
        if job.prefilled:
            return
        job.prefilled = True
        node, pool = job.prefill or job.decode, self._pool(job.gateway)
        booked = self._touched(node, pool)
        if self._paces:
            took_s = self._clock() - job.arrived_s
            alone = job.alone and booked.backlog.single
            self._paces[node.index].prefilled(job.new, job.ask.prompt - job.new, job.waits_s, took_s, job.beside, alone)
        booked.prefill_requests -= 1
        booked.prefill_tokens -= job.new
        booked.prefill_s = round(booked.prefill_s - job.booked_s, 6)
        booked.backlog.leave(job, self._clock())
        if job.prefill is not None:
            booked = self._touched(job.decode, pool)
            booked.coming_requests -= 1
            booked.coming_tokens -= job.ask.prompt

    def pulled(self, job: Job) -> None:
        """The first token of one that was prefilled elsewhere."""
        if self._links is not None and not job.decode.booked[self._pool(job.gateway)].prefill_requests:
            assert job.prefill is not None and job.source is not None
            took_s = self._clock() - job.source.last_s
            self._links.pulled(job.prefill.member.host, job.decode.member.host, job.transferred, took_s)

    def began(self, job: Job) -> None:
        """Its first token."""
        job.spent_s = job.decode.booked[self._pool(job.gateway)].backlog.spent_s(self._clock())

    def streamed(self, job: Job) -> None:
        """Its last token."""
        if self._paces and job.ask.answer > 2:
            core = job.decode.core
            gap_s = (self._clock() - job.first_s) / (job.ask.answer - 1)
            booked = job.decode.booked[self._pool(job.gateway)]
            stalled_s = (booked.backlog.spent_s(self._clock()) - job.spent_s) / (job.ask.answer - 1)
            self._paces[job.decode.index].streamed(core.running + 1, core.kv_tokens, gap_s, stalled_s)

    def left(self, job: Job) -> None:
        """It is over, well or not."""
        if job.last_s == job.last_s:
            gap_s = (job.last_s - job.first_s) / (job.ask.answer - 1) if job.ask.answer > 1 else None
            self._traffic[job.gateway].ended(job.first_s - job.arrived_s, gap_s)
        booked = self._touched(job.decode, self._pool(job.gateway))
        booked.decode_requests -= 1
        booked.decode_tokens -= job.ask.prompt

    def changed(self, node: Node) -> None:
        """Something was done to an engine: its KV events."""
        if changes := node.core.blocks.changes:
            sight, now_s = self._sights[0], self._clock()
            self.events += len(changes)
            for name, came in changes:
                sight.changed(node.index, name, came, now_s)
            changes.clear()
