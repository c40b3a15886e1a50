"""Starts processes, waits until they answer, notices when one ends, ends them all."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from engines.process import Process
from engines.stages import stage

POLL_S = 0.5


class ProcessEnded(Exception):
    """A process ended that should run; the message names it, its status and the end of its log."""

    def __init__(self, process: Process, status: int) -> None:
        tail = process.tail()
        super().__init__(f"{process.name} ended with status {status}; the end of its log, {process.log}:\n{tail}")


@dataclass(slots=True, eq=False)
class Service:
    """A process that answers HTTP when it is ready."""

    process: Process
    health: str
    """URL that answers 200 when it is."""
    after: Sequence["Service"] = ()
    """What must be ready before this is started."""
    ready: bool = False
    started_s: float = 0.0
    took_s: float = 0.0

    @property
    def stage(self) -> str:
        """What it is doing, for a person."""
        if self.ready:
            return "ready"
        if not self.started_s:
            names = [other.process.name for other in self.after if not other.ready]
            return f"waiting for {', '.join(names)}" if names else "importing"
        return stage(self.process.log) if self.process.log else ""


class Supervisor:
    """Services of one machine, from start to end."""

    def __init__(self) -> None:
        self.services: list[Service] = []

    async def start(self, services: Sequence[Service], shown: Callable[[], None]) -> None:
        """Start each service when those it comes after are ready; returns when all are.

        Calls `shown` about twice a second meanwhile. Raises `ProcessEnded` as soon as any service, old or new, ends.
        """
        waiting = list(services)
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as http:
            while not all(service.ready for service in services):
                for service in [s for s in waiting if all(other.ready for other in s.after)]:
                    waiting.remove(service)
                    self.services.append(service)
                    service.started_s = time.monotonic()
                    await service.process.start()
                started = [service for service in services if service.started_s and not service.ready]
                await asyncio.gather(*(self._ask(http, service) for service in started))
                await self.check()
                shown()
                await asyncio.sleep(0 if all(service.ready for service in services) else POLL_S)

    async def _ask(self, http: httpx.AsyncClient, service: Service) -> None:
        try:
            service.ready = (await http.get(service.health)).status_code == 200
        except httpx.HTTPError:
            service.ready = False
        service.took_s = time.monotonic() - service.started_s

    async def check(self) -> None:
        """Raises `ProcessEnded` if a service has ended."""
        for service in self.services:
            if not service.process.running:
                raise ProcessEnded(service.process, await service.process.wait())

    async def watch(self) -> None:
        """Return never; raises `ProcessEnded` when the first service ends."""
        waits = [asyncio.create_task(service.process.wait()) for service in self.services]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        await self.check()

    async def stop(self) -> None:
        """End all services, each when those that came after it have ended: the gateway drains while engines answer.

        One that is still starting is killed: vLLM does not listen then, and has nothing to finish.
        """
        left = list(self.services)
        while left:
            last = [service for service in left if not any(service in other.after for other in left)]
            for service in last:
                if service.ready:
                    service.process.stop()
                else:
                    service.process.kill()
            await asyncio.gather(*(service.process.wait() for service in last))
            left = [service for service in left if service not in last]

    def kill(self) -> None:
        """End all services now."""
        for service in self.services:
            service.process.kill()
