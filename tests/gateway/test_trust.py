"""Engines that answer their health check and are bad all the same: they lose their traffic, and get it back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from engines.double import Double
from gateway.fleet.engine import Engine, State
from tests.gateway.conftest import Gateway, until

BODY: dict[str, Any] = {"model": "m", "prompt": "Trust is good, " * 30, "max_tokens": 4}


@asynccontextmanager
async def two_and_one(**settings: Any) -> AsyncIterator[tuple[Double, Double, Double, Gateway]]:
    quick = {"eject_failures": 3, "eject_s": 0.2, "policy": "round_robin", "probe_timeout_s": 0.3, **settings}
    async with Double("prefill", "p0") as p0, Double("prefill", "p1") as p1, Double("decode", "d0") as d0:
        async with Gateway.over(p0, p1, d0, **quick) as gateway:
            yield p0, p1, d0, gateway


async def ask(gateway: Gateway, count: int, **more: Any) -> list[httpx.Response]:
    bodies = ({**BODY, "prompt": f"{n} {BODY['prompt']}", **more} for n in range(count))
    return [await gateway.http.post("/v1/completions", json=body) for body in bodies]


def asked(double: Double) -> int:
    return len([request for request in double.posts if b"Trust" in request.body])


async def test_an_engine_that_errs_loses_its_traffic_and_gets_it_back() -> None:
    async with two_and_one() as (p0, _, _, gateway):
        engine = gateway.app.fleet.engines["p0"]
        p0.faults.set(error_rate=1.0)
        assert {answer.status_code for answer in await ask(gateway, 8)} == {200}
        assert engine.offers is None and engine.state is State.UP
        assert gateway.metric("baton_engine_ejected", engine="p0", leg="prefill") == 1
        report = (await gateway.http.get("/readyz?verbose")).json()
        (shown,) = (one for one in report["engines"] if one["name"] == "p0")
        assert shown["ejected"] == {"prefill": "p0: status 500"} and shown["takes"] is None
        before = asked(p0)
        await ask(gateway, 6)
        assert asked(p0) == before
        ejections = engine.ejections["prefill"]
        await until(lambda: engine.breakers["prefill"].why.startswith("a request for one token"), 5)
        assert engine.ejections["prefill"] == ejections, "it was not tried with a client's request"

        p0.faults.heal()
        await until(lambda: engine.offers == "prefill", 10)
        await ask(gateway, 10)
        assert asked(p0) > before + 3
        assert gateway.metric("baton_engine_ejected", engine="p0", leg="prefill") == 0


async def test_bad_requests_eject_nobody() -> None:
    async with two_and_one() as (_, _, _, gateway):
        answers = await ask(gateway, 30, temperature=-5)
        assert {answer.status_code for answer in answers} == {400}
        assert [engine.offers for engine in gateway.app.fleet] == ["prefill", "prefill", "decode"]


async def test_when_all_engines_of_a_role_fail_half_of_them_go_on() -> None:
    async with two_and_one() as (p0, p1, _, gateway):
        for double in (p0, p1):
            double.faults.set(error_rate=1.0)
        assert {answer.status_code for answer in await ask(gateway, 20)} == {200}, "prefilled by the decode engine"
        offers = [engine.offers for engine in gateway.app.fleet]
        assert sorted(offers[:2], key=bool) == [None, "prefill"] and offers[2] == "decode"
        spared = sum(engine.spared for engine in gateway.app.fleet)
        assert spared > 0


def down(engine: Engine) -> bool:
    return engine.state is State.DOWN


async def test_an_engine_that_accepts_and_never_answers_goes_down() -> None:
    """Its health check is fine: only its own counters, and a probe, tell that it is stuck."""
    stuck = {"vitals_interval_s": 0.05, "stall_s": 0.3, "prefill_timeout_s": 2.0}
    async with two_and_one(**stuck) as (p0, _, _, gateway):
        engine = gateway.app.fleet.engines["p0"]
        p0.faults.hang = "answer"
        waiting = asyncio.create_task(ask(gateway, 4))
        await until(lambda: down(engine), 10)
        assert engine.why.startswith("no work for") and "does not answer within 0.3 s" in engine.why
        assert {answer.status_code for answer in await waiting} == {200}
        before = asked(p0)
        assert {answer.status_code for answer in await ask(gateway, 4)} == {200}
        assert asked(p0) == before
        p0.faults.heal()
        await until(lambda: engine.state is State.UP, 10)
        assert engine.offers == "prefill"


async def test_an_engine_that_is_busy_for_long_does_not_go_down() -> None:
    async with two_and_one(vitals_interval_s=0.02, stall_s=0.2) as (_, _, d0, gateway):
        d0.timing.decode_a_s = 0.02
        engine = gateway.app.fleet.engines["d0"]
        states = []
        task = asyncio.create_task(ask(gateway, 1, max_tokens=60))
        while not task.done():
            states.append(engine.state)
            await asyncio.sleep(0.01)
        assert (await task)[0].status_code == 200
        assert set(states) == {State.UP}


async def test_requests_of_somebody_else_are_drift_and_alarm_when_they_last() -> None:
    async with two_and_one(vitals_interval_s=0.02, drift_alarm_s=0.2) as (_, _, d0, gateway):
        engine = gateway.app.fleet.engines["d0"]
        d0.timing.decode_a_s = 0.05
        async with httpx.AsyncClient(base_url=d0.url, trust_env=False, timeout=30) as stranger:
            body = {**BODY, "max_tokens": 1000, "stream": True}
            async with stranger.stream("POST", "/v1/completions", json=body):
                await until(lambda: engine.drift == 1 and engine.drift_s > 0.2, 10)
                assert gateway.metric("baton_engine_drift", engine="d0") == 1
                assert gateway.metric("baton_engine_drift_seconds", engine="d0") > 0.2
        await until(lambda: engine.drift == 0 and engine.drift_s == 0, 10)
        asked = asyncio.create_task(ask(gateway, 1, max_tokens=40))
        await d0.busy()
        seen = []
        while not asked.done():
            seen.append(engine.drift_s)
            await asyncio.sleep(0.01)
        assert max(seen) < 0.2, "our own are none"
