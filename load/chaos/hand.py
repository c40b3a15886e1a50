"""Carries out blows on a fleet, and heals what they broke."""

import asyncio
import math
import signal
from contextlib import suppress

import httpx

from load.chaos.aftermath import deeds
from load.chaos.fleet import CannotStart, Child, Fleet
from load.chaos.weather import Blow

_TIMED = ("slow", "refuse", "spoil")
"""Faults that are taken back after a while; the others run out by themselves."""

_DRAIN_S = 30.0

_LOOK_S = 0.1


class Hand:
    """Every deed of a `Blow` is a method here, which returns when its target is well again (unless that is never)."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._tasks: set[asyncio.Task[None]] = set()
        self.struck: list[Blow] = []
        self.failed: list[str] = []
        """What could not be carried out, or did not come up again."""

    def strike(self, blow: Blow) -> None:
        """Begin; nobody waits."""
        self.struck.append(blow)
        task = asyncio.create_task(self._carry_out(blow))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, blow: Blow) -> None:
        try:
            await getattr(self, f"_{blow.deed}", self._order)(blow)
        except CannotStart as error:
            self.failed.append(f"{blow}: {error}")

    async def over(self) -> None:
        """Wait until everything that was begun is over."""
        await asyncio.gather(*self._tasks)

    async def heal(self) -> None:
        """Everybody is alive and well, whatever happened."""
        fleet = self._fleet
        fleet.store.signal(signal.SIGCONT)
        for name, engine in fleet.engines.items():
            engine.send(signal.SIGCONT)
            if not (engine.running and await fleet.order(name, do="heal") and await fleet.order(name, faults={})):
                await engine.kill()
                fleet.start_engine(name)
        for child in (*fleet.engines.values(), *fleet.gateways.values()):
            await child.ready_within(fleet.http)

    def cancel(self) -> None:
        """Leave everything as it is now."""
        for task in self._tasks:
            task.cancel()

    async def _order(self, blow: Blow) -> None:
        """Faults that a double has by itself."""
        if not await self._fleet.order(blow.target, faults=dict(blow.orders)):
            self.failed.append(f"{blow}: it did not listen")
        if blow.deed in _TIMED:
            await asyncio.sleep(blow.lasts_s)
            await self._fleet.order(blow.target, do="heal")

    async def _again(self, child: Child) -> None:
        if child.name in self._fleet.engines:
            self._fleet.start_engine(child.name)
        else:
            child.start()
        await child.ready_within(self._fleet.http)

    async def _kill(self, blow: Blow) -> None:
        child = self._fleet.engines[blow.target]
        await child.kill()
        if math.isfinite(blow.lasts_s):
            await asyncio.sleep(blow.lasts_s)
            await self._again(child)

    async def _restart(self, blow: Blow) -> None:
        child = self._fleet.engines[blow.target]
        child.send(signal.SIGTERM)
        await child.ended()
        await self._again(child)

    async def _replace(self, blow: Blow) -> None:
        """As an operator does: drained, and ended once nothing runs there."""
        fleet, name = self._fleet, blow.target
        child = fleet.engines[name]
        told = [gateway for gateway in fleet.gateways if await fleet.tell(gateway, name, "drain")]
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(_DRAIN_S):
                while await self._busy(name):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(_LOOK_S)
        await child.kill()
        await self._again(child)
        for gateway in told:
            await fleet.tell(gateway, name, "resume")

    async def _busy(self, name: str) -> bool:
        state = await self._fleet.state(name)
        return any(state[what] for what in ("running", "waiting", "leases"))

    async def _reload_gateway(self, blow: Blow) -> None:
        """Everything is read again, in the middle of everything."""
        self._fleet.gateways[blow.target].send(signal.SIGHUP)

    async def _die_handing_over(self, blow: Blow) -> None:
        """A prefill engine ends right after an answer that somebody is to fetch KV by."""
        child = self._fleet.engines[blow.target]
        await self._fleet.order(blow.target, faults=dict(blow.orders))
        await asyncio.sleep(blow.lasts_s)
        await child.kill()  # what died was only what it pretends to be
        await self._again(child)

    async def _hang(self, blow: Blow) -> None:
        child = self._fleet.engines[blow.target]
        child.send(signal.SIGSTOP)
        await asyncio.sleep(blow.lasts_s)
        child.send(signal.SIGCONT)

    async def _kill_store(self, blow: Blow) -> None:
        """What it held is gone."""
        self._fleet.store.kill()
        await asyncio.sleep(blow.lasts_s)
        await asyncio.to_thread(self._fleet.store.start)

    async def _hang_store(self, blow: Blow) -> None:
        self._fleet.store.signal(signal.SIGSTOP)
        await asyncio.sleep(blow.lasts_s)
        self._fleet.store.signal(signal.SIGCONT)

    async def _kill_gateway(self, blow: Blow) -> None:
        child = self._fleet.gateways[blow.target]
        await child.kill()
        await self._again(child)

    async def _replace_gateway(self, blow: Blow) -> None:
        """SIGTERM: it finishes what it has begun, and another takes its place."""
        child = self._fleet.gateways[blow.target]
        with suppress(httpx.HTTPError):
            self._fleet.past.update(await deeds(self._fleet.http, child))
        child.send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await child.ended()
        if child.running:
            self.failed.append(f"{blow}: it did not end within {_DRAIN_S:g} s of SIGTERM")
            await child.kill()
        await self._again(child)
