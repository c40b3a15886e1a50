"""After a storm: is anything left of it? Bookings, running requests, leases, tasks, memory, a wrong index."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from load.chaos.fleet import LEASE_S, Child, Fleet
from load.chaos.tally import Tally
from load.chaos.traffic import MODEL, ask

SETTLE_S = LEASE_S + 10.0
"""Until leases have ended, breakers have closed, the index has caught up."""

RSS_MB = 40.0
"""A gateway may have grown by so much since it was warm."""

TASKS = 20
"""And have so many more tasks: connections come and go."""

PROBES = 40

DEEDS = tuple(
    f"baton_{what}_total"
    for what in ("retries", "verdicts", "migrations", "transfers", "ejections", "overdue_requests")
)
"""Counters of what gateways do about failures."""


@dataclass(slots=True)
class Level:
    """How much one life of a gateway had when it was warm."""

    life: int
    rss_mb: float
    tasks: float


@dataclass(slots=True)
class Findings:
    """What was found at the end, for people."""

    gateways: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """What gateways did about failures; those that were killed took what they had counted with them."""
    predicted: str = ""


async def metrics(http: httpx.AsyncClient, gateway: Child) -> dict[tuple[str, ...], float]:
    """All samples by name and label values. Raises `httpx.HTTPError`."""
    page = (await http.get(gateway.ready.replace("/readyz", "/metrics"))).text
    families = text_string_to_metric_families(page)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


async def deeds(http: httpx.AsyncClient, gateway: Child) -> Counter[str]:
    """What a gateway has done about failures in this life. Raises `httpx.HTTPError`."""
    done: Counter[str] = Counter()
    for (sample, *labels), value in (await metrics(http, gateway)).items():
        if sample in DEEDS:
            done[" ".join((sample.removeprefix("baton_").removesuffix("_total"), *labels))] += int(value)
    return done


async def level(fleet: Fleet, name: str) -> Level:
    """Of a gateway that is warm now."""
    child = fleet.gateways[name]
    return Level(child.starts, child.rss_mb(), (await metrics(fleet.http, child)).get(("baton_tasks",), 0.0))


async def examine(fleet: Fleet, seed: int, levels: dict[str, Level], tally: Tally) -> Findings:
    """Look everywhere; what should not be there is a leak in `tally`."""
    await _settled(tally, "engines", lambda: _engines(fleet))
    found = Findings()
    if fleet.ours:
        await _settled(tally, "gateways", lambda: _gateways(fleet))
        await _settled(tally, "index", lambda: _index(fleet))
        found.predicted = await _predictions(fleet, seed, tally)
        for name, child in fleet.gateways.items():
            found.gateways[name] = await _grown(fleet, name, child, levels.get(name), tally)
            fleet.past.update(await deeds(fleet.http, child))
        found.counts = dict(sorted(fleet.past.items()))
    return found


async def _settled(tally: Tally, where: str, look: Callable[[], Awaitable[list[str]]]) -> None:
    """Wait until a look finds nothing; what it still finds in the end has leaked."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            left = await look()
        except (httpx.HTTPError, LookupError, ValueError) as error:
            left = [f"{where}: {type(error).__name__}: {error}"]
        if not left:
            return
        if time.monotonic() > deadline:
            for what in left:
                tally.leak(what)
            return
        await asyncio.sleep(0.1)


async def _engines(fleet: Fleet) -> list[str]:
    left = []
    for name, child in fleet.engines.items():
        if child.running:
            state = await fleet.state(name)
            busy = {what: state[what] for what in ("running", "waiting", "leases") if state[what]}
            left += [f"{name}: {count} {what}" for what, count in busy.items()]
    return left


async def _gateways(fleet: Fleet) -> list[str]:
    left = []
    for name, child in fleet.gateways.items():
        found = await metrics(fleet.http, child)
        for (sample, *labels), value in found.items():
            booked = sample in ("baton_in_flight", "baton_in_flight_tokens")
            busy = sample == "baton_connections" and "busy" in labels
            down = sample == "baton_engine_up" and not value and fleet.engines[labels[0]].running
            if down:
                left.append(f"{name}: takes {labels[0]} to be down")
            if (booked or busy) and value:
                left.append(f"{name}: {sample} {' '.join(labels)}: {value:g}")
    return left


async def _index(fleet: Fleet) -> list[str]:
    """Where the index says something else than an engine's own cache."""
    left = []
    states = {fleet.urls[name]: await fleet.state(name) for name, child in fleet.engines.items() if child.running}
    followers: dict[str, int] = {}
    for name, child in fleet.gateways.items():
        answer = await fleet.http.get(child.ready.replace("/readyz", "/index"), params={"top": 0})
        one = answer.raise_for_status().json()[MODEL]
        told = {source["engine"]: source["blocks"] for source in one["sources"]}
        for url, state in states.items():
            held, has = one["stats"]["holders"].get(url, 0), state["cached_blocks"]
            if held != has:
                events = f"{told.get(url)} as its events tell"
                left.append(f"{name}: the index gives {state['name']} {held} blocks, it has {has} ({events})")
        for source in one["sources"]:
            followers[source["engine"]] = followers.get(source["engine"], 0) + (source["state"] == "following")
            if source["why"]:
                left.append(f"{name}: {source['why']}")
    left += [f"{count} gateways follow the events of {url}" for url, count in followers.items() if count != 1]
    return left


async def _predictions(fleet: Fleet, seed: int, tally: Tally) -> str:
    """Prompts of the storm once more: does the prefill engine find cached what the index foretold?"""
    exact = tried = 0
    wrong = []
    for number in range(PROBES):
        one = ask(seed, number * 7)
        answer = await fleet.http.post(
            f"http://127.0.0.1:{fleet.ports[number % len(fleet.ports)]}{one.path}",
            json={**one.body, "stream": False, "stream_options": None},
            headers={"x-baton-facts": "1"},
        )
        told: Any = answer.headers
        if "x-baton-cached-tokens" in told:
            tried += 1
            predicted, actual = int(told["x-baton-predicted-prefill"]), int(told["x-baton-cached-tokens"])
            exact += predicted == actual
            if abs(predicted - actual) > 16:
                wrong.append(f"{told['x-baton-prefill']}: {predicted} tokens foretold, {actual} cached")
    if len(wrong) > tried // 20:
        tally.leak(f"the index is wrong in {len(wrong)} of {tried} predictions, such as {wrong[0]}", len(wrong))
    return f"{exact} of {tried} predictions of the index exact"


async def _grown(fleet: Fleet, name: str, child: Child, before: Level | None, tally: Tally) -> dict[str, float]:
    """Memory and tasks of a gateway now, and when it was warm."""
    now = await level(fleet, name)
    if before is None or before.life != child.starts:
        return {"rss_mb": round(now.rss_mb, 1), "tasks": now.tasks}
    if now.rss_mb > before.rss_mb + RSS_MB:
        tally.leak(f"{name}: {now.rss_mb:.0f} MB, {before.rss_mb:.0f} MB when it was warm")
    if now.tasks > before.tasks + TASKS:
        tally.leak(f"{name}: {now.tasks:g} tasks, {before.tasks:g} when it was warm")
    return {
        "warm_rss_mb": round(before.rss_mb, 1),
        "rss_mb": round(now.rss_mb, 1),
        "warm_tasks": before.tasks,
        "tasks": now.tasks,
    }
