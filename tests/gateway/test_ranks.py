"""Data-parallel ranks behind one port: each is an engine of its own to policies, index and bookings."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engines.double import Double
from engines.fleet import Fleet as FleetFile
from gateway.app import App, fleet_of
from gateway.fleet.wanted import of_file
from gateway.settings import Settings
from tests.gateway.conftest import FAST, Gateway, until
from tests.gateway.readers import DoubleReader, DoubleTokenizers

FACTS = {"x-baton-facts": "1"}
RANK = "x-data-parallel-rank"


@asynccontextmanager
async def ranked(**settings: object) -> AsyncIterator[tuple[Double, Double, Gateway]]:
    """A prefill engine of two ranks and a decode engine of three, each one process."""
    async with (
        Double("prefill", "p", dp=2, events=True, num_blocks=600, max_model_len=4096) as p,
        Double("decode", "d", dp=3, events=True, num_blocks=600, max_model_len=4096) as d,
    ):
        engines = [{"name": e.name, "role": e.role, "url": e.url, "dp": len(e.engines)} for e in (p, d)]
        file = FleetFile.parse({"models": {"m": {}}, "engines": engines})
        config = Settings(**{**FAST, "send_ids": True, **settings})
        app = App(fleet_of(file, config), config, None, DoubleTokenizers(DoubleReader()))
        async with Gateway.around(app, config) as gateway:
            await gateway.enrolled()
            yield p, d, gateway


def body(seed: int, words: int = 150) -> dict[str, object]:
    pick = random.Random(seed)
    text = " ".join(pick.choice("abcdefghijklmnop") * 3 for _ in range(words))
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 4}


async def test_each_rank_is_an_engine_and_is_addressed_by_the_header() -> None:
    async with ranked(policy="round_robin") as (p, d, gateway):
        assert sorted(gateway.app.fleet.engines) == ["d.0", "d.1", "d.2", "p.0", "p.1"]
        went: Counter[str] = Counter()
        for seed in range(12):
            answer = await gateway.http.post("/v1/chat/completions", json=body(seed), headers=FACTS)
            assert answer.status_code == 200
            prefill, decode = answer.headers["x-baton-prefill"], answer.headers["x-baton-decode"]
            went[prefill] += 1
            went[decode] += 1
            legs = [[r for r in e.posts if r.path == "/v1/chat/completions"][-1] for e in (p, d)]
            assert [leg.headers[RANK] for leg in legs] == [prefill[-1], decode[-1]]
        assert went == {"p.0": 6, "p.1": 6, "d.0": 4, "d.1": 4, "d.2": 4}
        served = [engine.stats.external_kv_transfer for engine in d.engines]
        assert min(served) > 0, "each rank pulled what was prefilled for it"
        await until(lambda: not any(engine.leases for engine in p.engines), 5)


async def test_a_client_does_not_choose_the_rank() -> None:
    async with ranked() as (_, d, gateway):
        answer = await gateway.http.post("/v1/chat/completions", json=body(1), headers={RANK: "7", **FACTS})
        assert answer.status_code == 200
        assert [r.headers[RANK] for r in d.posts][-1] == answer.headers["x-baton-decode"][-1]


async def test_the_index_knows_which_rank_holds_what() -> None:
    async with ranked() as (p, d, gateway):
        namespace = await gateway.enrolled()
        assert {(s.engine, s.rank) for s in namespace.ingest.status()} == {
            (f"{e.url}#rank={rank}", rank) for e in (p, d) for rank in range(len(e.engines))
        }
        for seed in range(6):
            went = set()
            for _ in range(3):
                answer = await gateway.http.post("/v1/chat/completions", json=body(seed), headers=FACTS)
                went.add(answer.headers["x-baton-decode"])
            assert len(went) == 1, "the rank that holds the prompt is the one that gets it"
        by_rank = {f"{e.url}#rank={r}": one.pool.cached() for e in (p, d) for r, one in enumerate(e.engines)}
        await until(lambda: all(namespace.ingest.names(url) == held for url, held in by_rank.items()), 5)
        assert sum(map(bool, by_rank.values())) >= 3


async def test_ranks_share_one_health_and_their_counts_agree() -> None:
    async with ranked(vitals_interval_s=0.02) as (_, d, gateway):
        fleet = gateway.app.fleet
        d.timing.decode_a_s = 0.02
        long = [
            asyncio.create_task(gateway.http.post("/v1/chat/completions", json={**body(s), "max_tokens": 100}))
            for s in range(6)
        ]
        await until(lambda: sum(e.stats.busy for e in d.engines) == 6, 5)
        await until(lambda: all(engine.drift == 0 for engine in fleet), 5)
        d.timing.decode_a_s = 0.0
        assert all(answer.status_code == 200 for answer in await asyncio.gather(*long))
        assert gateway.app.fleet.engines["d.2"].kv_tokens == 600 * 16
        await d.die()
        await until(lambda: all(fleet.engines[f"d.{rank}"].state == "down" for rank in range(3)), 10)


@pytest.mark.parametrize("where", [{"url": "http://x:1"}, {"port": 1, "host": "h"}])
def test_ranks_are_of_engines_that_run_and_of_those_to_be_started(where: dict[str, object]) -> None:
    engines = [{"name": "a", "role": "both", "dp": 2, **where}]
    file = FleetFile.parse({"models": {"m": {}}, "engines": engines, "hosts": {"h": {"address": "x"}}})
    assert [(one.name, one.url) for one in of_file(file)] == [
        ("a.0", "http://x:1#rank=0"),
        ("a.1", "http://x:1#rank=1"),
    ]
