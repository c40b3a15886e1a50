"""All engines: who serves which model, the snapshot that a policy sees, and how engines come and go while it serves."""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, Protocol

import policies.contract as contract
from engines.fleet import DNS, Role
from engines.fleet import Fleet as FleetFile
from gateway.fleet import wanted as wanting
from gateway.fleet.breaker import NORMAL, Rules
from gateway.fleet.engine import Engine, Leg, Sight, State
from gateway.fleet.links import NOMINAL_BYTES, Links
from gateway.fleet.pace import Pace
from gateway.fleet.traffic import Traffic
from gateway.fleet.trust import Trust
from gateway.fleet.wanted import Wanted
from gateway.index.contract import InFlight
from gateway.wire.pool import Limits

log = logging.getLogger(__name__)

OK = "ok"
DRAIN_S = 30.0
_LOOK_S = 0.05


def of_model(model: str) -> str:
    """The name under which gateways tell each other a model's arrivals (thousandths a second) and work, as a load."""
    return f"model:{model}"


class Member(Protocol):
    """Who follows the fleet's engines. `joined` and `left` must not block."""

    def joined(self, engine: Engine) -> None: ...

    def left(self, engine: Engine) -> None:
        """Nothing new goes to the engine; what runs there may end."""
        ...

    async def gone(self, engine: Engine) -> None:
        """Nothing runs there any more: forget it. Must not raise."""
        ...


class Change(NamedTuple):
    """What `Fleet.sync` did, by names; an engine that another takes the place of is in both first lists."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (f"{word} {', '.join(names)}" for word, names in zip(self._fields, self, strict=True) if names)
        return "; ".join(parts) or "nothing changed"


class Fleet:
    """The engines of this gateway by name. `ttft_slo_s`, `itl_slo_s`: what its clients should get, seconds."""

    def __init__(
        self,
        wanted: Iterable[Wanted] = (),
        links: wanting.Links | None = None,
        limits: Limits | None = None,
        ttft_slo_s: float = 2.0,
        itl_slo_s: float = 0.05,
        rules: Rules = NORMAL,
    ) -> None:
        self.engines: dict[str, Engine] = {}
        self.leaving: list[Engine] = []
        """Engines that are no longer wanted and still have requests."""
        self.members: list[Member] = []
        self.links = Links()
        self.drain_s = DRAIN_S
        """How long requests may go on at an engine that is removed."""
        self.trust = Trust(self, self.reconsider)
        self._rules = rules
        self._limits = limits or Limits()
        self._traffic: dict[str, Traffic] = {}
        self._kinds: dict[tuple[str, Role, contract.Speed], Pace] = {}
        """How fast engines of one kind are, as all of them have shown."""
        self._objectives = (ttft_slo_s, itl_slo_s)
        self._changed: asyncio.Event = asyncio.Event()
        self._farewells: set[asyncio.Task[None]] = set()
        self.sync(wanted, links)

    @classmethod
    def of(
        cls,
        file: FleetFile,
        limits: Limits,
        ttft_slo_s: float = 2.0,
        itl_slo_s: float = 0.05,
        rules: Rules = NORMAL,
    ) -> "Fleet":
        """The engines that a fleet file names. Raises `UnknownProfile`."""
        return cls(
            [one for one in wanting.of_file(file) if not one.url.startswith(DNS)],
            wanting.links_of(file),
            limits,
            ttft_slo_s,
            itl_slo_s,
            rules,
        )

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines.values())

    def sync(self, wanted: Iterable[Wanted], links: wanting.Links | None = None) -> Change:
        """Make the engines those that are wanted, in one step; names and URLs must each be there once.

        An engine that stays goes on as it is, in its new role if that changed. One that is not wanted any more gets
        nothing new, what runs there ends (within `drain_s`), then its members are told that it is gone.
        """
        goal = {one.name: one for one in wanted}
        before = self.engines
        stay = {name: e for name, e in before.items() if name in goal and e.wanted.same_engine(goal[name])}
        changed = tuple(name for name, engine in stay.items() if engine.wanted != goal[name])
        new = {name: Engine.of(one, self._limits, self._rules) for name, one in goal.items() if name not in stay}
        self.engines = {name: stay.get(name) or new[name] for name in goal}
        if links is not None:
            self.links.know(links)
        for name in changed:
            stay[name].adopt(goal[name])
            self.reconsider(stay[name])
        old = [engine for name, engine in before.items() if name not in stay]
        for engine in old:
            self._leave(engine)
        for engine in new.values():
            for member in self.members:
                member.joined(engine)
        change = Change(tuple(new), tuple(engine.name for engine in old), changed)
        if before and any(change):
            log.info("fleet: %s", change)
        return change

    def _leave(self, engine: Engine) -> None:
        engine.draining = True
        self.reconsider(engine)
        self.leaving.append(engine)
        for member in self.members:
            member.left(engine)
        task = asyncio.get_running_loop().create_task(self._farewell(engine), name=f"farewell {engine.name}")
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _farewell(self, engine: Engine) -> None:
        """What runs on the engine ends, or its time does; then it is closed and forgotten."""
        deadline = time.monotonic() + self.drain_s
        while not engine.idle and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing is told at each release
            await asyncio.sleep(_LOOK_S)
        if not engine.idle:
            log.warning("engine %s is closed with requests in flight: %r", engine.name, engine)
        engine.pool.close()
        try:
            for member in self.members:
                await member.gone(engine)
        finally:
            self.leaving.remove(engine)
        self.links.keep({other.host for other in (*self, *self.leaving)})
        if not any(other.model == engine.model for other in self):
            self._traffic.pop(engine.model, None)
            self._kinds = {alike: kind for alike, kind in self._kinds.items() if alike[0] != engine.model}
        log.info("engine %s (%s) has left", engine.name, engine.url)

    def models(self) -> dict[str, bytes]:
        """Every model that an engine serves now: id -> entry of `/v1/models`, merged."""
        merged: dict[str, bytes] = {}
        for engine in self:
            if engine.state is State.UP:
                for name, entry in engine.served.items():
                    merged.setdefault(name, entry)
        return merged

    def known(self, model: str) -> bool:
        """True if some engine serves the model, up or not."""
        return any(model == engine.model or model in engine.served for engine in self.engines.values())

    def base(self, model: str) -> tuple[str, str]:
        """The model that engines run when `model` is asked for, and the LoRA adapter (empty if it is none)."""
        for engine in self:
            if model == engine.model or model in engine.served:
                return engine.model, model if model in engine.adapters else ""
        return model, ""

    def loads(self) -> dict[str, InFlight]:
        """What this gateway has in flight, by engine URL; idle engines are left out."""
        loads = {e.url: e.in_flight for e in self.engines.values() if e.decode_requests or e.prefill_requests}
        for engine in self.leaving:
            loads.setdefault(engine.url, engine.in_flight)
        for model, traffic in self._traffic.items():
            arrivals, work = traffic.rates()
            if arrivals > 1e-3:
                loads[of_model(model)] = InFlight(prefill_requests=int(arrivals * 1e3), prefill_us=int(work * 1e6))
        return loads

    def traffic(self, model: str) -> Traffic:
        """What comes in here for the model that engines run."""
        traffic = self._traffic.get(model)
        if traffic is None:
            traffic = self._traffic[model] = Traffic(*self._objectives)
        return traffic

    def snapshot(self, model: str, sight: Sight, avoid: Collection[str] = ()) -> contract.Fleet | None:
        """The engines that take requests for `model`, without those to avoid; None if none of them can answer."""
        views = [
            engine.view(sight, role)
            for engine in self.engines.values()
            if (role := engine.offers if not engine.tried else engine.on_trial()) is not None
            and (engine.model == model or model in engine.served)
            and not (avoid and engine.name in avoid)
        ]
        roles = [view.role for view in views]
        prefillers = len(roles) - roles.count("decode")
        if len(roles) == roles.count("prefill"):
            return None
        base = self.base(model)[0]
        traffic = self.traffic(base)
        arrivals, work = traffic.rates()
        if (others := sight.others(of_model(base))) is not None:
            arrivals += others.prefill_requests * 1e-3
            work += others.prefill_us * 1e-6
        return contract.Fleet(
            engines=tuple(views),
            links=self.links,
            now_s=time.monotonic(),
            kv_bytes_per_token=NOMINAL_BYTES,
            arrivals_per_s=arrivals,
            prefill_load=work / max(1, prefillers),
            itl_price=traffic.itl_price,
        )

    def missing(self) -> list[str]:
        """What keeps the fleet from being complete, in words: a role of a model that no engine takes requests for."""
        lacks = []
        for model in sorted({engine.model for engine in self}):
            mine = [engine for engine in self if engine.model == model]
            up = {engine.role for engine in mine if engine.offers is not None}
            wanted = sorted({engine.role for engine in mine} - up)
            lacks += [f"{model or 'the fleet'}: no {role} engine is up" for role in wanted]
        return lacks

    def ready(self) -> bool:
        """True if every model that is known of can be answered (perhaps without remote prefill)."""
        models = {engine.model for engine in self if engine.model}
        return bool(models) and all(
            any(e.model == model and e.offers not in (None, "prefill") for e in self) for model in models
        )

    def mark(self, engine: Engine, state: State, why: str = "") -> None:
        """Note that an engine answers, or why it does not; wakes who waits for one."""
        engine.state, engine.why = state, why
        if state is State.UP:
            pace = engine.pace
            alike = (engine.model, engine.role, pace.prior)
            if (kind := self._kinds.get(alike)) is None:
                kind = self._kinds[alike] = Pace(pace.prior)
            pace.kind = kind
        self.reconsider(engine)

    def observe(self, engine: Engine, leg: Leg, outcome: str, why: str = "") -> None:
        """What became of one leg there: `OK`, or the cause of its failure. Costs next to nothing."""
        if outcome == OK:
            engine.heard_s = time.monotonic()
            self.trust.good(engine, leg)
        elif outcome == "refused":
            self.mark(engine, State.DOWN, why)
        else:
            self.trust.bad(engine, leg, outcome, why)

    def reconsider(self, engine: Engine) -> None:
        """Something about an engine has changed: what are it and those like it offered for?"""
        news = False
        for one in {engine, *(other for other in self if other.model == engine.model)}:
            before = one.offers
            one.offers = self.trust.offer(one)
            news = news or (one.offers is not None and one.offers != before)
        if news:
            self._changed.set()
            self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until some engine comes up."""
        await self._changed.wait()

    def close(self) -> None:
        for task in self._farewells:
            task.cancel()
        for engine in (*self, *self.leaving):
            engine.pool.close()
