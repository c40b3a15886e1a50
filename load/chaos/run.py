"""One run from its first request to its aftermath."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from load.chaos.aftermath import Findings, Level, examine, level
from load.chaos.client import Client
from load.chaos.fleet import Fleet
from load.chaos.hand import Hand
from load.chaos.judge import Verdict, judge
from load.chaos.tally import Tally
from load.chaos.traffic import Ask, ask
from load.chaos.weather import Blow

WARM_S = 10.0
"""After so long a gateway under load is warm."""

_LOOK_S = 0.5

Shown = Callable[[Tally, str], None]


@dataclass
class Report:
    """What came of it."""

    tally: Tally
    blows: list[Blow] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    """What went wrong with the harness itself."""
    findings: Findings = field(default_factory=Findings)
    took_s: float = 0.0
    stopped: bool = False
    """Ctrl-C came."""


class Run:
    """Requests at a rate, at most `most` at once, blows before some of them; `patience_s` is how long one may take."""

    def __init__(
        self, fleet: Fleet, seed: int, blows: Sequence[Blow], rate: float, most: int, patience_s: float
    ) -> None:
        self._fleet = fleet
        self._seed = seed
        self._blows = sorted(blows, key=lambda blow: blow.at, reverse=True)
        self._rate = rate
        self._patience_s = patience_s
        self._hand = Hand(fleet)
        self._client = Client(fleet.ports)
        self._tally = Tally()
        self._room = asyncio.Semaphore(most)
        self._levels: dict[str, Level] = {}
        self._last = "calm"

    async def __call__(self, requests: int, shown: Shown, stop: asyncio.Event) -> Report:
        """Send all requests, or as many as until `stop`; then heal everything and look for what is left."""
        started = time.monotonic()
        watching = asyncio.create_task(self._watch())
        tasks: set[asyncio.Task[None]] = set()
        pick = random.Random(f"{self._seed} arrivals")
        due = started
        for number in range(requests):
            self._blow(number)
            due += pick.expovariate(self._rate)
            await self._pause(due, stop)
            await self._room.acquire()
            if stop.is_set():
                break
            task = asyncio.create_task(self._one(ask(self._seed, number)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            shown(self._tally, self._last)
        watching.cancel()
        report = Report(self._tally, self._hand.struck, self._hand.failed, stopped=stop.is_set())
        if stop.is_set():
            self._hand.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        else:
            while tasks:
                await asyncio.wait(tasks, timeout=0.5)
                shown(self._tally, self._last)
            report.took_s = time.monotonic() - started
            await self._after(report, shown)
        self._tally.retried = self._client.retried
        self._client.close()
        return report

    async def _after(self, report: Report, shown: Shown) -> None:
        shown(self._tally, "the storm is over: healing")
        await self._hand.over()
        if not any(blow.lasts_s == float("inf") for blow in self._hand.struck):
            await self._hand.heal()
        shown(self._tally, "looking for what is left of it")
        report.findings = await examine(self._fleet, self._seed, self._levels, self._tally)

    async def _watch(self) -> None:
        """Note what each life of a gateway takes once it is warm."""
        while self._fleet.ours:
            await asyncio.sleep(_LOOK_S)
            for name, child in self._fleet.gateways.items():
                known = self._levels.get(name)
                if time.monotonic() > child.started_s + WARM_S and (known is None or known.life != child.starts):
                    with suppress(httpx.HTTPError):
                        self._levels[name] = await level(self._fleet, name)

    def _blow(self, number: int) -> None:
        while self._blows and self._blows[-1].at <= number:
            blow = self._blows.pop()
            self._last = str(blow)
            self._hand.strike(blow)

    async def _pause(self, due: float, stop: asyncio.Event) -> None:
        if (wait_s := due - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    async def _one(self, one: Ask) -> None:
        """Send, wait, judge."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience_s):
                answer, which = await self._client.send(one)
        except TimeoutError:
            self._tally.hangs(one, time.monotonic() - started)
            return
        finally:
            self._room.release()
        verdict = judge(one, answer) if answer.status else Verdict("error", "no gateway")
        if verdict.kind == "severed" and self._fleet.gateways[f"g{which}"].killed_s < started:
            verdict = Verdict("lost", f"a bare cut {verdict.why}")
        self._tally.enter(one, verdict, time.monotonic() - started, answer.left)
