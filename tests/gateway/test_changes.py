"""A fleet that changes while requests come: nothing is lost, nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from engines.double import Double
from engines.fleet import Role
from gateway.fleet.engine import State
from gateway.fleet.fleet import Change
from gateway.fleet.wanted import Wanted
from tests.gateway.conftest import Gateway, until
from tests.gateway.readers import DoubleReader

BODY: dict[str, Any] = {"model": "m", "prompt": "Some may come and some may go. " * 20, "max_tokens": 8}
FACTS = {"x-baton-facts": "1"}


def wanted(double: Double, **more: Any) -> Wanted:
    return Wanted(double.name, double.url, Role(double.role), "m", **more)


def counted(double: Double) -> int:
    return len([request for request in double.posts if b"Some may" in request.body])


class Load:
    """Requests one after the other in several lanes, until told to stop; every answer must be right."""

    def __init__(self, gateway: Gateway, lanes: int = 6) -> None:
        self.done = 0
        self.wrong: list[str] = []
        self._http = gateway.http
        self._going = True
        self._tasks = [asyncio.create_task(self._lane(lane)) for lane in range(lanes)]

    async def _lane(self, lane: int) -> None:
        number = 0
        while self._going:
            number += 1
            stream = number % 2 == 0
            body = {**BODY, "prompt": f"{lane} {number} {BODY['prompt']}", "stream": stream}
            answer = await self._http.post("/v1/completions", json=body)
            if answer.status_code != 200 or (stream and not answer.text.endswith("data: [DONE]\n\n")):
                self.wrong.append(answer.text)
            self.done += 1

    async def more(self, count: int) -> None:
        """Wait until so many more are done."""
        goal = self.done + count
        await until(lambda: self.done >= goal, 20)

    async def end(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)
        assert not self.wrong


@asynccontextmanager
async def doubles(**sizes: Any) -> AsyncIterator[tuple[Double, ...]]:
    made = [Double("prefill" if name[0] == "p" else "decode", name, **sizes) for name in ("p0", "p1", "d0", "d1")]
    async with made[0], made[1], made[2], made[3]:
        yield tuple(made)


async def test_engines_come_and_go_under_load_and_nothing_is_lost() -> None:
    async with doubles() as (p0, p1, d0, d1), Gateway.over(p0, d0, policy="round_robin") as gateway:
        fleet = gateway.app.fleet
        load = Load(gateway)
        await load.more(20)
        for _ in range(3):
            assert fleet.sync(map(wanted, (p1, d1))) == Change(("p1", "d1"), ("p0", "d0"))
            await until(lambda: not fleet.leaving, 5)
            await load.more(10)
            assert fleet.sync(map(wanted, (p0, d0))) == Change(("p0", "d0"), ("p1", "d1"))
            await until(lambda: not fleet.leaving, 5)
            await load.more(10)
        await load.end()
        assert min(map(counted, (p0, p1, d0, d1))) > 0
        assert gateway.booked() == 0


async def test_an_engine_that_is_drained_gets_nothing_new_and_stays() -> None:
    async with doubles() as (p0, p1, d0, d1), Gateway.over(p0, p1, d0, d1, policy="round_robin") as gateway:
        fleet = gateway.app.fleet
        load = Load(gateway)
        await load.more(10)
        fleet.sync([wanted(p0, drain=True), *map(wanted, (p1, d0, d1))])
        assert fleet.engines["p0"].state is State.UP
        await until(lambda: fleet.engines["p0"].idle, 5)
        before = counted(p0)
        await load.more(20)
        assert counted(p0) == before
        fleet.sync(map(wanted, (p0, p1, d0, d1)))
        await load.more(20)
        assert counted(p0) > before
        await load.end()


async def test_a_stream_on_a_removed_engine_ends_in_peace_and_its_pool_closes() -> None:
    async with doubles() as (p0, _, d0, d1), Gateway.over(p0, d0) as gateway:
        fleet = gateway.app.fleet
        d0.timing.decode_a_s = 0.02
        body = {**BODY, "max_tokens": 40, "stream": True}
        async with gateway.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            old = fleet.engines["d0"]
            fleet.sync(map(wanted, (p0, d1)))
            await until(lambda: fleet.engines["d1"].state is State.UP, 5)
            assert [engine.name for engine in fleet.leaving] == ["d0"]
            again = await gateway.http.post("/v1/completions", json=BODY, headers=FACTS)
            assert again.headers["x-baton-decode"] == "d1"
            rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
        await until(lambda: not fleet.leaving, 5)
        assert old.pool.idle == old.pool.busy == 0
        await until(lambda: not d0.server.connections, 5)


async def test_what_does_not_end_in_time_is_ended() -> None:
    async with doubles() as (p0, _, d0, d1), Gateway.over(p0, d0, drain_s=0.2) as gateway:
        fleet = gateway.app.fleet
        d0.timing.decode_a_s = 0.05
        body = {**BODY, "max_tokens": 1000, "stream": True}
        async with gateway.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            fleet.sync(map(wanted, (p0, d1)))
            await until(lambda: not fleet.leaving, 5)
            rest = [line async for line in lines if line]
        assert rest[-1].startswith("data: ")
        await d0.idle()


async def test_a_role_and_a_lease_change_in_place() -> None:
    async with doubles() as (p0, p1, d0, _), Gateway.over(p0, p1, d0, policy="round_robin") as gateway:
        fleet = gateway.app.fleet
        kept = fleet.engines["p1"]
        change = fleet.sync([wanted(p0), replace(wanted(p1), role=Role.DECODE, lease_s=9.0), wanted(d0)])
        assert change == Change((), (), ("p1",))
        assert fleet.engines["p1"] is kept and kept.state is State.UP and kept.lease_s == 9.0
        went = {
            (
                await gateway.http.post(
                    "/v1/completions", json={**BODY, "prompt": f"{n} {BODY['prompt']}"}, headers=FACTS
                )
            ).headers["x-baton-decode"]
            for n in range(6)
        }
        assert went == {"p1", "d0"}


async def test_another_process_under_the_same_name_takes_its_place() -> None:
    async with doubles() as (p0, _, d0, d1), Gateway.over(p0, d0) as gateway:
        fleet = gateway.app.fleet
        moved = replace(wanted(d1), name="d0")
        assert fleet.sync([wanted(p0), moved]) == Change(("d0",), ("d0",))
        await until(lambda: not fleet.leaving, 5)
        assert (await gateway.http.post("/v1/completions", json=BODY)).status_code == 200
        assert (counted(d0), counted(d1)) == (0, 1)
        assert gateway.metric("baton_engine_up", engine="d0", role="decode", model="m") == 1


async def test_what_is_known_of_a_removed_engine_is_forgotten() -> None:
    async with doubles(events=True) as (p0, p1, d0, _), Gateway.over(p0, p1, d0, reader=DoubleReader()) as gateway:
        namespace = await gateway.enrolled()
        body = {**BODY, "prompt": "to be remembered " * 60}
        first = await gateway.http.post("/v1/completions", json=body, headers=FACTS)
        name = first.headers["x-baton-prefill"]
        one = next(double for double in (p0, p1) if double.name == name)
        other = p1 if one is p0 else p0

        async def holders() -> dict[str, int]:
            return {holder: n for holder, n in (await namespace.index.stats()).holders.items() if n}

        async with asyncio.timeout(5):
            while one.url not in await holders():
                await asyncio.sleep(0.01)
        gateway.app.fleet.sync(map(wanted, (other, d0)))
        await until(lambda: not gateway.app.fleet.leaving, 5)
        assert one.url not in await holders()
        assert one.url not in {status.engine for status in namespace.ingest.status()}
        assert one.url not in namespace.names.values()
        assert f'engine="{name}"' not in (await gateway.http.get("/metrics")).text
        assert (await gateway.http.post("/v1/completions", json=body)).status_code == 200

        gateway.app.fleet.sync(map(wanted, (p0, p1, d0)))
        await until(lambda: gateway.app.fleet.engines[name].enrolled, 5)
        assert one.url in {status.engine for status in namespace.ingest.status()}


async def test_a_model_that_nobody_serves_any_more_is_let_go() -> None:
    async with doubles(events=True) as (p0, _, d0, _), Double("both", "o", model="other") as other:
        async with Gateway.over(p0, d0, other, reader=DoubleReader()) as gateway:
            await until(lambda: set(gateway.app.lookup.namespaces) == {"m", "other"}, 5)
            body = {**BODY, "model": "other"}
            assert (await gateway.http.post("/v1/completions", json=body)).status_code == 200
            assert 'model="other"' in (await gateway.http.get("/metrics")).text
            gateway.app.fleet.sync(map(wanted, (p0, d0)))
            await until(lambda: not gateway.app.fleet.leaving and set(gateway.app.lookup.namespaces) == {"m"}, 5)
            assert (await gateway.http.post("/v1/completions", json=body)).status_code == 404
            assert 'model="other"' not in (await gateway.http.get("/metrics")).text


async def test_a_request_waits_for_an_engine_that_is_added() -> None:
    async with doubles() as (p0, _, d0, _), Gateway.over(p0, d0, engine_wait_s=5.0) as gateway:
        gateway.app.fleet.sync([wanted(p0), wanted(d0, drain=True)])
        assert not gateway.app.readiness.ready
        asked = asyncio.create_task(gateway.http.post("/v1/completions", json=BODY))
        gateway.app.fleet.sync(map(wanted, (p0, d0)))
        assert (await asked).status_code == 200


async def test_a_new_engine_of_which_nothing_is_known_yet_does_not_make_the_gateway_unready() -> None:
    async with doubles() as (p0, _, d0, d1), Gateway.over(p0, d0) as gateway:
        assert gateway.app.readiness.ready
        unknown = [Wanted("d1", d1.url, Role.DECODE), Wanted("x", "http://127.0.0.1:1", Role.DECODE)]
        gateway.app.fleet.sync([wanted(p0), wanted(d0), *unknown])
        fleet = gateway.app.fleet
        assert gateway.app.readiness.ready
        await until(lambda: fleet.engines["d1"].state is State.UP and fleet.engines["x"].state is State.DOWN, 5)
        assert fleet.engines["d1"].model == "m"
        assert gateway.app.readiness.ready


@pytest.mark.parametrize("count", [1, 12])
async def test_requests_at_the_moment_of_a_change_are_served(count: int) -> None:
    """Placed, not sent yet: their engine leaves in between."""
    async with doubles() as (p0, _, d0, d1), Gateway.over(p0, d0) as gateway:
        fleet = gateway.app.fleet
        p0.timing.prefill_a_s = 0.05
        asked = [
            asyncio.create_task(gateway.http.post("/v1/completions", json={**BODY, "prompt": f"{n} {BODY['prompt']}"}))
            for n in range(count)
        ]
        await p0.busy()
        fleet.sync(map(wanted, (p0, d1)))
        answers: list[httpx.Response] = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        assert gateway.booked() == 0
