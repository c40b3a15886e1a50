"""Brings what runs on this host in step with the fleet file, and does what it is told."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from engines.checks import CannotStart, fits, to_start
from engines.control import Refused, Say
from engines.fleet import Engine, Fleet, FleetError, Role
from engines.rollout import Outcome, Piece, Rollout, Step, Stopped, plan, ready
from engines.service import Phase, Service
from engines.spec import Spec, of_engine
from engines.supervision import Supervision
from engines.supervisor import Supervisor
from engines.topology import Topology

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the fleet file."""


class Keeper:
    """The engines of one host. One change at a time."""

    def __init__(self, supervisor: Supervisor, fleet: Fleet, host: str = "") -> None:
        self.supervisor = supervisor
        self.fleet = fleet
        self._host = host
        self._topology = Topology.here()
        self._busy = asyncio.Lock()
        self.gpus: Collection[int] = ()
        """That there are here; empty: not known."""
        self.pieces = self._wanted(fleet)
        """What runs here, or is to, by name. During an upgrade, and where one was left, engines are of two fleets."""

    def _wanted(self, fleet: Fleet) -> dict[str, Piece]:
        """What this host is to run of a fleet. Raises `CannotStart`."""
        mine = to_start(fleet, self._host)
        return {e.name: Piece(of_engine(fleet, e, self._topology), fleet) for e in mine}

    def specs(self) -> dict[str, Spec]:
        """What runs here, or is to, by name."""
        return {name: piece.spec for name, piece in self.pieces.items()}

    def mix(self, new: Fleet, names: Collection[str]) -> None:
        """Before anything is started: these engines are as in another fleet. Raises `CannotStart`."""
        wanted = self._wanted(new)
        for name in names:
            self.pieces.pop(name, None)
        self.pieces |= {name: piece for name, piece in wanted.items() if name in names}

    def engines(self) -> list[tuple[Fleet, Engine]]:
        """What runs here, as its fleet has it."""
        return [(fleet, next(e for e in fleet.engines if e.name == name)) for name, (_, fleet) in self.pieces.items()]

    def status(self) -> list[dict[str, Any]]:
        """Every service in plain words, for people and scripts."""
        return [_described(service) for service in self.supervisor.services.values()]

    def _named(self, names: Sequence[str]) -> list[Service]:
        if unknown := [name for name in names if name not in self.supervisor.services]:
            known = ", ".join(self.supervisor.services)
            raise Refused(f"there is no {', '.join(unknown)} here, only {known}")
        chosen = [self.supervisor.services[name] for name in names] if names else self.supervisor.engines
        return sorted(chosen, key=lambda service: service.spec.role not in (None, Role.PREFILL))

    async def restart(self, names: Sequence[str], say: Say, drain: bool = True) -> None:
        """Restart these (all engines if none is named), one after another. Raises `Refused`, `Stopped`."""
        async with self._busy:
            for service in self._named(names):
                say(f"{service.name}: restarting")
                service.restart(drain)
                await ready(service, say)

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

    # The fleet file.

    async def follow(self, file: Path) -> None:
        """Bring every change of the file about, until cancelled; a file in error is told and passed over."""
        seen = content(file)
        while True:
            await asyncio.sleep(LOOK_S)
            now = await asyncio.to_thread(content, file)
            if now == seen:
                continue
            seen = now
            try:
                await self.become(Fleet.load(file), lambda text: log.info("%s", text))
            except (FleetError, CannotStart, Stopped) as error:
                log.error("%s is not followed: %s", file, error)

    def plan(self, fleet: Fleet) -> list[Step]:
        """What has to be done so that this host runs a fleet. Raises `CannotStart` if it does not fit."""
        for engine in to_start(fleet, self._host):
            fits(fleet, engine, self.gpus)
        return plan(self.pieces, self._wanted(fleet))

    async def become(self, fleet: Fleet, say: Say) -> None:
        """Run what this fleet says. Raises `Stopped`, with all taken back, at the first engine that does not get ready
        or serves worse than those before; raises `CannotStart` if the file does not fit this host.
        """
        if (outcome := await self.roll(fleet, say)).why:
            raise Stopped(outcome.why)

    async def roll(
        self,
        fleet: Fleet,
        say: Say,
        rules: Supervision | None = None,
        halted: Callable[[], bool] = lambda: False,
        note: Callable[[tuple[str, ...]], None] = lambda done: None,
    ) -> Outcome:
        """The same, or a part of it, and where it stands; `rules` say how it is watched. Raises `CannotStart`."""
        async with self._busy:
            steps = self.plan(fleet)
            say("; ".join(map(str, steps)) or "nothing to do: all engines run as the file says")
            before, self.supervisor.rules = self.supervisor.rules, fleet.supervisor
            rollout = Rollout(self.supervisor, self.pieces, rules or fleet.supervisor, say, halted, note)
            outcome = await rollout.run(steps)
            if outcome.why:
                self.supervisor.rules = before
            elif not outcome.left:
                self.fleet = fleet
                self.pieces |= self._wanted(fleet)
                self.supervisor.tell()
            return outcome


def content(file: Path) -> bytes:
    """What stands in a file; nothing if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


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
