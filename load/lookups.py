"""Times lookups, and checks every answer."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.index.contract import Index
from load.ingest import Ingest
from load.prefixes import Query, Turn, Workload
from load.server import Server

ROUNDS, CALLS = 14, 40
"""Short rounds, of which the best counts: what else the machine does mostly adds."""

_TICK_S = 0.02


class Wrong(RuntimeError):
    """An index gave a wrong answer."""


@dataclass(frozen=True, slots=True)
class Times:
    """Of lookups, ms. `server_us` is the server's own time for one; 0 without a server."""

    p50_ms: float
    p99_ms: float
    server_us: float = 0.0


async def ask(index: Index, query: Query) -> None:
    """Look a prompt up. Raises `Wrong`, `Unavailable`."""
    found = await index.match(query.hashes)
    if found.held != query.held:
        wrong = [who.engine for who in {**query.held, **found.held} if found.held.get(who) != query.held.get(who)]
        raise Wrong(f"a prompt of {len(query.hashes) // 8} blocks: wrong depth for {', '.join(wrong)}")


async def times(index: Index, queries: Sequence[Query], server: Server | None = None) -> Times:
    """One lookup after the other, round by round; the best of each figure."""
    rounds: list[Times] = []
    for _ in range(ROUNDS):
        took_s: list[float] = []
        before = server.match_us() if server else 0.0
        for query in queries:
            start = time.perf_counter()
            await ask(index, query)
            took_s.append(time.perf_counter() - start)
        used = server.match_us() - before if server else 0.0
        rounds.append(_times(took_s, used / len(queries)))
    return Times(
        min(found.p50_ms for found in rounds),
        min(found.p99_ms for found in rounds),
        min(found.server_us for found in rounds),
    )


def _times(took_s: Sequence[float], server_us: float = 0.0) -> Times:
    quantiles = statistics.quantiles(took_s, n=100, method="inclusive")
    return Times(quantiles[49] * 1e3, quantiles[98] * 1e3, server_us)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Lookups and writing at once, at a pace; rates are what was reached. Times include waiting for this process."""

    matches_per_s: float
    blocks_per_s: float
    server_cpu_share: float
    times: Times


async def mixed(
    ingest: Ingest, workload: Workload, server: Server, matches_per_s: float, blocks_per_s: float, seconds: float
) -> Mixed:
    """Both from this process, as in a gateway. Raises `Unavailable`, `Lost`."""
    queries = [query.hashes for query in workload.queries(256, 1.0, CALLS)]
    turns = list(workload.turns(int(blocks_per_s * seconds)))
    took_s: list[float] = []

    async def look(hashes: bytes, asked: float) -> None:
        await ingest.index.match(hashes)
        took_s.append(time.perf_counter() - asked)

    async def looks() -> None:
        pending: list[asyncio.Task[None]] = []
        for number in range(int(matches_per_s * seconds)):
            if (early := start + number / matches_per_s - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            pending.append(asyncio.create_task(look(queries[number % len(queries)], time.perf_counter())))
        await asyncio.gather(*pending)

    async def writes() -> None:
        written = 0
        tick: list[Turn] = []
        for turn in turns:
            tick.append(turn)
            written += turn.blocks
            if sum(part.blocks for part in tick) < blocks_per_s * _TICK_S:
                continue
            await ingest.push(tick)
            tick = []
            if (early := start + written / blocks_per_s - time.perf_counter()) > 0:
                await asyncio.sleep(early)
        await ingest.push(tick)

    async def until_done(work: asyncio.Task[None]) -> float:
        await work
        return time.perf_counter() - start

    before, start = server.cpu_s(), time.perf_counter()
    looking, writing = asyncio.create_task(looks()), asyncio.create_task(writes())
    looked_s, wrote_s = await asyncio.gather(until_done(looking), until_done(writing))
    used_s = server.cpu_s() - before
    return Mixed(
        matches_per_s=len(took_s) / looked_s,
        blocks_per_s=sum(turn.blocks for turn in turns) / wrote_s,
        server_cpu_share=used_s / max(looked_s, wrote_s),
        times=_times(took_s),
    )
