"""Keeps the services of one machine: starts them, shows how far they are, gives word of changes, ends them."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import httpx

from engines.log import Log
from engines.service import COMING, Phase, Service
from engines.spec import Spec
from engines.supervision import Supervision

SHOW_S = 0.5
ASK_TIMEOUT_S = 5.0


class Failed(Exception):
    """What was to run does not; the message says why, with the mend, and shows the end of the log."""

    def __init__(self, services: Iterable[Service]) -> None:
        super().__init__("\n".join(_obituary(service) for service in services))


def _obituary(service: Service) -> str:
    tail = service.log.tail()
    return service.why + (f"; the end of its log, {service.log.path}:\n{tail}" if tail else "")


class Supervisor:
    """Services by name. `drains`: gateways hear of draining engines. `listener` gets what they print, by name."""

    def __init__(
        self,
        logs: Path,
        rules: Supervision | None = None,
        *,
        drains: bool = False,
        listener: Callable[[str, str], None] | None = None,
    ) -> None:
        self.services: dict[str, Service] = {}
        self.rules = rules or Supervision()
        self.drains = drains
        self.followers: list[Callable[[], None]] = []
        """Told, without arguments, whenever a service has changed its phase. Must not block."""
        self._logs = logs
        self._listener = listener
        self._http = httpx.AsyncClient(timeout=ASK_TIMEOUT_S, trust_env=False)

    @property
    def engines(self) -> list[Service]:
        return [service for service in self.services.values() if service.spec.metrics]

    def add(self, specs: Iterable[Spec], patient: bool = True) -> list[Service]:
        """Start what these say; those that share a GPU one after another. Not `patient`: the first end is the last.

        vLLM measures the GPU's free memory while it starts, and gives up if a neighbour changes it meanwhile.
        """
        made = []
        for spec in specs:
            heard = partial(self._listener, spec.name) if self._listener is not None else None
            log = Log(self._logs / f"{spec.name}.log", self.rules.log_bytes, self.rules.log_files, heard)
            after = [other for other in self.engines if set(other.spec.gpus) & set(spec.gpus)]
            service = Service(spec, self.rules, log, self._http, after, self.tell)
            service.drains = self.drains and bool(spec.metrics)
            service.patient = patient
            self.services[spec.name] = service
            made.append(service)
        for service in made:
            service.begin()
        return made

    def tell(self) -> None:
        """Something has changed."""
        for follower in self.followers:
            follower()

    async def ready(
        self, services: Sequence[Service], shown: Callable[[], None] = lambda: None, *, strict: bool = True
    ) -> None:
        """Wait until all of these are; calls `shown` about twice a second.

        Raises `Failed` if one will not be; if not `strict`, only if none will be.
        """
        while any(service.phase in (*COMING, Phase.FAILED) for service in services):
            failed = [service for service in services if service.phase is Phase.FAILED]
            if failed and (strict or len(failed) == len(services)):
                raise Failed(failed)
            if all(service.phase not in COMING for service in services):
                break
            shown()
            await asyncio.sleep(SHOW_S)
        shown()

    async def watch(self) -> None:
        """Return never; raises `Failed` when no engine can come back any more, or what is no engine has failed."""
        while True:
            given_up = (service for service in self.services.values() if service.phase is Phase.FAILED)
            failed = [service for service in given_up if service.patient]  # others are being replaced
            if any(not s.spec.metrics for s in failed) or (failed and set(self.engines) <= set(failed)):
                raise Failed(failed)
            await asyncio.sleep(SHOW_S)

    async def remove(self, names: Iterable[str], drain: bool = True) -> None:
        """End these and forget them."""
        services = [self.services[name] for name in names]
        for service in services:
            service.stop(drain)
        for service in services:
            await service.reaches(Phase.STOPPED)
            await service.end()
            del self.services[service.name]
        self.tell()

    async def stop(self) -> None:
        """End all: first what is no engine, so that a gateway drains while engines answer, then the engines."""
        for wave in ([s for s in self.services.values() if not s.spec.metrics], self.engines):
            for service in wave:
                service.stop()
            for service in wave:
                await service.reaches(Phase.STOPPED)
                await service.end()
        self.services.clear()
        await self._http.aclose()

    def kill(self) -> None:
        """End all now."""
        for service in self.services.values():
            service.kill()


def elapsed_s(service: Service) -> float:
    """How long its start has taken so far, or took."""
    return service.took_s if service.ready else time.monotonic() - service.since_s
