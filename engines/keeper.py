"""Brings what runs on this host in step with the fleet file, one engine after another, and does what it is told."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engines.checks import CannotStart, to_start
from engines.control import Refused, Say
from engines.fleet import Fleet, FleetError
from engines.service import Phase, Service
from engines.spec import Spec, of_engine
from engines.supervisor import Supervisor
from engines.topology import Topology

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the fleet file."""


class Stopped(Exception):
    """A change was stopped on its way; the message says at what, and what was taken back."""


class Change(NamedTuple):
    """What has to be done so that these specs run."""

    added: tuple[Spec, ...]
    replaced: tuple[Spec, ...]
    removed: tuple[str, ...]

    @classmethod
    def between(cls, now: Mapping[str, Spec], wanted: Mapping[str, Spec]) -> "Change":
        return cls(
            tuple(spec for name, spec in wanted.items() if name not in now),
            tuple(spec for name, spec in wanted.items() if name in now and now[name] != spec),
            tuple(name for name in now if name not in wanted),
        )

    def __str__(self) -> str:
        parts = {
            "adds": [spec.name for spec in self.added],
            "replaces": [spec.name for spec in self.replaced],
            "removes": self.removed,
        }
        return "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names) or "nothing to do"


class Keeper:
    """The engines of one host. One change at a time."""

    def __init__(self, supervisor: Supervisor, fleet: Fleet, host: str = "") -> None:
        self.supervisor = supervisor
        self.fleet = fleet
        self._host = host
        self._topology = Topology.here()
        self._busy = asyncio.Lock()

    def specs(self, fleet: Fleet | None = None) -> dict[str, Spec]:
        """What this host is to run of a fleet, by name."""
        fleet = fleet or self.fleet
        return {e.name: of_engine(fleet, e, self._topology) for e in to_start(fleet, self._host)}

    def status(self) -> list[dict[str, Any]]:
        """Every service in plain words, for people and scripts."""
        return [_described(service) for service in self.supervisor.services.values()]

    def _named(self, names: Sequence[str]) -> list[Service]:
        if unknown := [name for name in names if name not in self.supervisor.services]:
            known = ", ".join(self.supervisor.services)
            raise Refused(f"there is no {', '.join(unknown)} here, only {known}")
        chosen = [self.supervisor.services[name] for name in names] if names else self.supervisor.engines
        return sorted(chosen, key=_prefill_first)

    async def restart(self, names: Sequence[str], say: Say, drain: bool = True) -> None:
        """Restart these (all engines if none is named), one after another. Raises `Refused`, `Stopped`."""
        async with self._busy:
            for service in self._named(names):
                say(f"{service.name}: restarting")
                service.restart(drain)
                await self._ready(service, say)

    async def drain(self, names: Sequence[str], say: Say) -> None:
        """End these when their requests have ended, and keep them down. Raises `Refused`."""
        if not names:
            raise Refused("name the engines to drain")
        async with self._busy:
            services = self._named(names)
            for service in services:
                say(f"{service.name}: draining")
                service.stop()
            for service in services:
                await service.reaches(Phase.STOPPED)
                say(f"{service.name}: stopped; `baton engines restart {service.name}` starts it again")

    async def _ready(self, service: Service, say: Say) -> None:
        phase = await service.reaches(Phase.READY, Phase.FAILED, Phase.STOPPED)
        if phase is not Phase.READY:
            raise Stopped(service.why or f"{service.name} was stopped")
        say(f"{service.name}: ready after {service.took_s:.0f} s")

    # The fleet file.

    async def follow(self, file: Path) -> None:
        """Bring every change of the file about, until cancelled; a file in error is told and passed over."""
        seen = _content(file)
        while True:
            await asyncio.sleep(LOOK_S)
            content = await asyncio.to_thread(_content, file)
            if content == seen:
                continue
            seen = content
            try:
                await self.become(Fleet.load(file), lambda text: log.info("%s", text))
            except (FleetError, CannotStart, Stopped) as error:
                log.error("%s is not followed: %s", file, error)

    async def become(self, fleet: Fleet, say: Say) -> None:
        """Run what this fleet says: new engines first, then those that changed, prefill before decode, then removals.

        Whatever is replaced or removed is drained before. Stops, with the engine it was at taken back, at the first
        one that does not get ready: raises `Stopped`; raises `CannotStart` if the file does not fit this host.
        """
        async with self._busy:
            services = self.supervisor.services
            wanted = self.specs(fleet)
            change = Change.between({service.name: service.spec for service in self.supervisor.engines}, wanted)
            say(f"the fleet file {change}")
            self.supervisor.rules, self.fleet = fleet.supervisor, fleet
            free: list[Spec] = []
            taken: list[Spec] = []
            for spec in change.added:
                (taken if self._in_the_way(spec) else free).append(spec)
            for service in self.supervisor.add(free):
                await self._ready(service, say)
            for spec in sorted(change.replaced, key=lambda spec: _prefill_first(services[spec.name])):
                await self._replace(services[spec.name], spec, say)
            for name in change.removed:
                say(f"{name}: leaving")
            await self.supervisor.remove(change.removed)
            for service in self.supervisor.add(taken):
                await self._ready(service, say)

    def _in_the_way(self, spec: Spec) -> bool:
        """Whether an engine that runs has what a new one needs."""
        return any(
            set(service.spec.ports) & set(spec.ports) or set(service.spec.gpus) & set(spec.gpus)
            for service in self.supervisor.engines
        )

    async def _replace(self, service: Service, spec: Spec, say: Say) -> None:
        before = service.spec
        say(f"{service.name}: replacing")
        service.replace(spec)
        service.patient = False
        service.restart()
        try:
            await self._ready(service, say)
        except Stopped as error:
            service.replace(before)
            service.restart()
            say(f"{service.name}: taken back")
            await self._ready(service, say)
            raise Stopped(f"{error}; {service.name} runs as before, and what comes after it was left alone") from None
        finally:
            service.patient = True


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _prefill_first(service: Service) -> int:
    role = service.spec.role
    return 0 if role is None or role == "prefill" else 1


def _described(service: Service) -> dict[str, Any]:
    spec = service.spec
    return {
        "name": service.name,
        "role": spec.role or "",
        "phase": service.phase,
        "stage": service.stage,
        "share": round(service.share, 2),
        "for_s": round(time.monotonic() - service.since_s, 1),
        "starts": service.starts,
        "pid": service.pid,
        "gpus": list(spec.gpus),
        "url": spec.health.removesuffix("/health"),
        "log": str(service.log.path.resolve()),
        "why": service.why,
    }
