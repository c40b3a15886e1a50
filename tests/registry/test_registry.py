"""Engines register themselves, and gateways follow: new ones, changed ones, removed ones, without a lost request."""

import asyncio
import time
from pathlib import Path

from engines import record
from engines.fleet import Role
from engines.record import HOSTS, Entry
from gateway.index.embedded import Embedded
from tests.ports import fresh_ports
from tests.registry.hosts import SECRET, Load, fleet, gateway, host, until, up

PD = {"p0": "prefill", "p1": "prefill", "d0": "decode"}


async def test_a_host_comes_changes_and_goes_and_no_request_is_lost(
    redis: Embedded, secret: Path, tmp_path: Path
) -> None:
    ports = fresh_ports()
    taken: dict[str, dict[str, int]] = {}
    async with gateway(redis, secret) as one:
        assert (await one.http.get("/readyz")).status_code == 503
        async with host(fleet(ports, taken, PD), tmp_path, redis.url) as gpu1:
            await until(lambda: up(one) == {"p0", "p1", "d0"})
            load = Load(one.http)
            async with load.running():
                await load.more(20)
                said: list[str] = []
                await gpu1.keeper.restart(["p0"], said.append)
                await load.more(20)
                roles = {"p0": "prefill", "d0": "decode", "d1": "decode"}
                changed = fleet(ports, taken, roles, p0={"args": ["--seed", "1"]})
                await gpu1.keeper.become(changed, said.append)
                await until(lambda: up(one) == {"p0", "d0", "d1"})
                await load.more(20)
            assert load.bad == []
            assert "p1: leaving" in said
            assert [gpu1.supervisor.services[name].starts for name in ("p0", "d0", "d1")] == [3, 1, 1]
            (d0,) = [engine for engine in one.app.fleet if engine.name == "d0"]
            assert (d0.role, d0.model) == ("decode", "m")
        await until(lambda: not list(one.app.fleet))
        assert (await one.http.get("/readyz")).status_code == 503


async def test_who_does_not_know_the_secret_is_refused(redis: Embedded, secret: Path, tmp_path: Path) -> None:
    ports = fresh_ports()
    stranger = fleet(ports, {}, {"x0": "both"})
    ours = fleet(ports, {}, {"b0": "both"})
    async with gateway(redis, secret) as one:
        async with (
            host(stranger, tmp_path, redis.url, "stranger", b"some other secret"),
            host(ours, tmp_path, redis.url, "gpu1"),
        ):
            await until(lambda: up(one) == {"b0"})
            await until(lambda: one.metric("baton_registrations_refused_total", reason="signature") > 0)
            report = (await one.http.get("/readyz?verbose")).text
            assert "host stranger signs with another secret: give both sides the same one" in report
            assert up(one) == {"b0"}


async def test_a_redis_that_forgets_everything_costs_no_engine(redis: Embedded, secret: Path, tmp_path: Path) -> None:
    async with gateway(redis, secret) as one, host(fleet(fresh_ports(), {}, {"b0": "both"}), tmp_path, redis.url):
        await until(lambda: up(one) == {"b0"})
        engine = one.app.fleet.engines["b0"]
        with redis.client() as client:
            client.flushall()
            await until(lambda: client.exists(HOSTS))  # the supervisor has told it again
        await asyncio.sleep(0)
        redis.kill()
        body = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
        assert (await one.http.post("/v1/chat/completions", json=body)).status_code == 200
        redis.start()
        with redis.client() as client:
            await until(lambda: client.exists(HOSTS))
        assert one.app.fleet.engines["b0"] is engine


async def test_a_host_that_falls_silent_is_forgotten_after_a_while(redis: Embedded, secret: Path) -> None:
    from gateway.fleet.registry import Registry

    told: list[list[str]] = []
    source = Registry(redis.url, SECRET, lambda why: None, linger_s=0.2)
    engine = record.Record("b0", "http://127.0.0.1:9", Role.BOTH, "m")
    with redis.client() as client:
        entry = Entry("gpu1", time.time(), (engine,))
        client.set(record.key("gpu1"), record.sign(entry, SECRET), px=300)
        client.sadd(HOSTS, "gpu1")
        task = asyncio.create_task(source.follow(lambda wanted: told.append([one.name for one in wanted])))
        await until(lambda: told == [["b0"], []])
        assert not client.exists(HOSTS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
