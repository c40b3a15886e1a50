"""What the loads of other gateways, which travel with each lookup, cost it."""

import asyncio
import random
from contextlib import AsyncExitStack
from functools import partial

from gateway.index.contract import InFlight
from gateway.index.redis import RedisIndex
from load.bench import Figures
from load.lookups import CALLS, Wrong, times
from load.prefixes import Workload
from load.server import Server

BLOCKS = 256
MOST = 150
"""Engines on which one gateway has requests at a time: thirty a second, a few seconds each, on two engines."""


async def neighbours(
    url: str, namespace: str, index: RedisIndex, workload: Workload, server: Server, count: int
) -> Figures:
    """Lookups while `count - 1` other gateways tell their loads. Raises `Wrong`, `Unavailable`."""
    chance = random.Random(1)
    engines = [holder.engine for holder in workload.holders]
    index.know(engines)
    queries = workload.queries(BLOCKS, 1.0, CALLS)
    async with AsyncExitStack() as stack:
        others = []
        for number in range(count - 1):
            other = await RedisIndex.connect(url, namespace, gateway=f"other-{number}", budget_s=5.0)
            stack.push_async_callback(other.close)
            busy = chance.sample(engines, min(MOST, len(engines)))
            told = {engine: InFlight(*[number + 1] * len(InFlight._fields)) for engine in busy}
            other.publish(partial(dict, told))
            others.append(other)

        async def telling() -> None:
            while True:
                for other in others:
                    other.beat()
                await asyncio.sleep(0.5)

        await asyncio.gather(*(other.match(queries[0].hashes) for other in others))
        task = asyncio.create_task(telling())
        stack.callback(task.cancel)
        found = await times(index, queries, server)
        if len((await index.match(queries[0].hashes)).others) < min(MOST, len(engines)):
            raise Wrong("the loads of the other gateways did not come along")
    key = f"gateways.{count}"
    return {
        f"{key}.match_ms.p50": found.p50_ms,
        f"{key}.match_ms.p99": found.p99_ms,
        f"{key}.match_server_us": found.server_us,
    }
