"""All engines: who serves which model, and the snapshot that a policy sees."""

import asyncio
import time
from collections.abc import Collection, Iterable, Iterator, Mapping

import policies.contract as contract
from engines.fleet import ANY
from engines.fleet import Fleet as FleetFile
from engines.model import profile as profiles
from gateway.fleet.engine import Engine, Sight, State
from gateway.fleet.links import NOMINAL_BYTES, Links
from gateway.fleet.pace import Pace
from gateway.fleet.traffic import Traffic
from gateway.index.contract import InFlight
from gateway.wire.pool import Limits


def of_model(model: str) -> str:
    """The name under which gateways tell each other a model's arrivals (thousandths a second) and work, as a load."""
    return f"model:{model}"


class Fleet:
    """The engines of this gateway by name. `ttft_slo_s`, `itl_slo_s`: what its clients should get, seconds."""

    def __init__(
        self,
        engines: Iterable[Engine],
        links: Mapping[tuple[str, str], contract.Link] | None = None,
        ttft_slo_s: float = 2.0,
        itl_slo_s: float = 0.05,
    ) -> None:
        self.engines = {engine.name: engine for engine in engines}
        self.links = Links(links)
        self._traffic: dict[str, Traffic] = {}
        self._objectives = (ttft_slo_s, itl_slo_s)
        self._changed: asyncio.Event = asyncio.Event()

    @classmethod
    def of(cls, file: FleetFile, limits: Limits, ttft_slo_s: float = 2.0, itl_slo_s: float = 0.05) -> "Fleet":
        """The engines that a fleet file names. Raises `UnknownProfile`."""
        engines = (
            Engine(
                e.name,
                file.url(e),
                e.role,
                model="" if e.model == ANY else e.model,
                host=e.host,
                lease_s=file.models[e.model].lease_s,
                limits=limits,
                pace=Pace(profiles.load(e.profile).speed if e.profile else contract.ASSUMED),
            )
            for e in file.engines
        )
        links = {(k.a, k.b): contract.Link(gbps=k.gbps, latency_us=k.latency_us) for k in file.links}
        return cls(engines, links, ttft_slo_s, itl_slo_s)

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines.values())

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
        """The healthy engines that serve `model`, without those to avoid; None if none of them can answer."""
        views = [
            engine.view(sight)
            for engine in self.engines.values()
            if engine.state is State.UP
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
        """What keeps the fleet from being complete, in words: a role of a model without a healthy engine."""
        lacks = []
        for model in sorted({engine.model for engine in self}):
            mine = [engine for engine in self if engine.model == model]
            up = {engine.role for engine in mine if engine.state is State.UP}
            wanted = sorted({engine.role for engine in mine} - up)
            lacks += [f"{model or 'the fleet'}: no {role} engine is up" for role in wanted]
        return lacks

    def ready(self) -> bool:
        """True if every model can be answered (perhaps without remote prefill)."""
        models = {engine.model for engine in self}
        return all(any(e.model == model and e.role.decodes and e.state is State.UP for e in self) for model in models)

    def mark(self, engine: Engine, state: State, why: str = "") -> None:
        """Note that an engine answers, or why it does not; wakes who waits for one."""
        engine.state, engine.why = state, why
        if state is State.UP:
            self._changed.set()
            self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until some engine comes up."""
        await self._changed.wait()

    def close(self) -> None:
        for engine in self:
            engine.pool.close()
