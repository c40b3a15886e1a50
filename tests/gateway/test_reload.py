"""Fleet file, settings and keys are changed while requests come; what is bad is refused and what was goes on."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.double import Double
from engines.fleet import Fleet as FleetFile
from engines.fleet import FleetError, Role
from gateway.app import App
from gateway.fleet.engine import State
from gateway.fleet.fleet import Fleet
from gateway.fleet.roster import OPERATOR, Orders, Roster, Source, Tell
from gateway.fleet.wanted import Wanted
from gateway.launch import Launch
from gateway.settings import LIVE, Settings, SettingsError
from tests.gateway.conftest import FAST, Gateway, until
from tests.gateway.test_changes import BODY, Load, counted, doubles
from tests.ports import fresh_port


def written(path: Path, engines: Iterable[Double], **settings: Any) -> Path:
    """A fleet file with these engines."""
    lines = ["[gateway]", *(f"{name} = {value!r}" for name, value in settings.items()), "[models.m]"]
    for double in engines:
        lines += ["[[engines]]", f'name = "{double.name}"', f'role = "{double.role}"', f'url = "{double.url}"']
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines).replace("True", "true") + "\n")
    return fresh.replace(path)


@asynccontextmanager
async def reading(path: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway that was started with this fleet file."""
    launch = Launch(path, None, {**FAST, **settings})
    file, effective = launch.read()
    async with Gateway.around(App.of(launch, file, effective.settings), effective.settings) as gateway:
        yield gateway


async def test_a_changed_fleet_file_is_followed_and_no_request_is_lost(tmp_path: Path) -> None:
    async with doubles() as (p0, p1, d0, d1):
        path = written(tmp_path / "fleet.toml", (p0, d0))
        async with reading(path, policy="round_robin") as gateway:
            fleet = gateway.app.fleet
            load = Load(gateway)
            await load.more(10)
            written(path, (p1, d1))
            await until(lambda: set(fleet.engines) == {"p1", "d1"} and not fleet.leaving, 10)
            await load.more(20)
            await load.end()
            assert counted(p1) and counted(d1)
            assert gateway.metric("baton_reloads_total", outcome="applied") == 1


ONE = '[models.m]\n[[engines]]\nname = "b"\nrole = "both"\nurl = "http://x:1"\n'
BAD = {
    "engines = 3": "no model",
    "[[[": "not TOML",
    "": "no model",
    ONE.replace("both", "prefill"): "no engine with role 'decode'",
    "[gateway]\nattempts = 0\n" + ONE: "attempts",
    ONE + 'profile = "none"': "no profile",
    '[gateway]\napi_keys_file="/no"\n' + ONE: "/no",
}


async def test_a_bad_file_is_refused_and_shown_and_the_old_one_goes_on(tmp_path: Path) -> None:
    async with doubles() as (p0, _, d0, _):
        path = written(tmp_path / "fleet.toml", (p0, d0))
        async with reading(path) as gateway:
            for number, (text, says) in enumerate(BAD.items(), 1):
                path.write_text(text)
                gateway.app.reloading.again()
                assert says in gateway.app.reloading.refused
                assert gateway.metric("baton_reloads_total", outcome="refused") == number
                report = (await gateway.http.get("/readyz?verbose")).json()
                assert report["ready"] and any("refused" in told and says in told for told in report["warnings"])
                assert [engine.name for engine in gateway.app.fleet] == ["p0", "d0"]
                assert (await gateway.http.post("/v1/completions", json=BODY)).status_code == 200
            written(path, (p0, d0))
            await until(lambda: not gateway.app.reloading.refused, 10)
            assert not [told for told in gateway.app.readiness.report()["warnings"] if "refused" in told]


async def test_a_file_that_is_gone_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    async with doubles() as (p0, _, d0, d1):
        path = written(tmp_path / "fleet.toml", (p0, d0))
        async with reading(path) as gateway:
            path.rename(tmp_path / "away")
            with pytest.raises(FleetError, match="No such file"):
                gateway.app.reloading.reload()
            assert set(gateway.app.fleet.engines) == {"p0", "d0"}
            written(path, (p0, d1))
            await until(lambda: set(gateway.app.fleet.engines) == {"p0", "d1"}, 10)


async def test_settings_and_keys_change_live_or_are_named(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-old\n")
    async with doubles() as (p0, _, d0, _):
        path = written(tmp_path / "fleet.toml", (p0, d0), api_keys_file=str(keys))
        async with reading(path) as gateway:
            old, new = {"authorization": "Bearer sk-old"}, {"authorization": "Bearer sk-new"}
            assert (await gateway.http.post("/v1/completions", json=BODY, headers=old)).status_code == 200
            keys.write_text("sk-new\n")
            written(path, (p0, d0), api_keys_file=str(keys), max_body_bytes=9, session_s=7.0, trace_ratio=0.5)
            done = gateway.app.reloading.reload()
            assert done.settings == {"max_body_bytes": 9, "session_s": 7.0}
            assert (done.restart, done.keys) == (["trace_ratio"], 1)
            assert (await gateway.http.post("/v1/completions", json=BODY, headers=old)).status_code == 401
            assert (await gateway.http.post("/v1/completions", json=BODY, headers=new)).status_code == 413
            keys.write_text("")
            with pytest.raises(SettingsError, match="has no key"):
                gateway.app.reloading.reload()
            assert (await gateway.http.get("/v1/models", headers=new)).status_code == 200


def test_what_is_live_are_settings() -> None:
    assert set(Settings.model_fields) > LIVE


# Several sources.


def engine(name: str, port: int, role: Role = Role.BOTH, **more: Any) -> Wanted:
    return Wanted(name, f"http://127.0.0.1:{port}", role, **more)


async def test_sources_are_merged_and_the_first_keeps_a_name_and_a_url() -> None:
    roster = Roster(fleet := Fleet())
    roster.tell("file", [engine("a", 1), engine("b", 2)])
    roster.tell("registry", [engine("c", 3), engine("a", 4), engine("d", 2)])
    assert [(e.name, e.url) for e in fleet] == [(n, f"http://127.0.0.1:{p}") for n, p in (("a", 1), ("b", 2), ("c", 3))]
    assert roster.origin == {"a": "file", "b": "file", "c": "registry"}
    assert len(roster.conflicts) == 2 and "engine d" in roster.conflicts[1] and "engine b at" in roster.conflicts[1]
    roster.tell("file", [engine("b", 2)])
    assert [(e.name, e.url) for e in fleet] == [
        ("b", "http://127.0.0.1:2"),
        ("c", "http://127.0.0.1:3"),
        ("a", "http://127.0.0.1:4"),
    ]
    roster.tell("registry", [])
    assert [e.name for e in fleet] == ["b"]
    fleet.close()


async def test_an_operators_orders_outlive_what_sources_tell() -> None:
    roster = Roster(fleet := Fleet())
    roster.tell("file", [engine("a", 1), engine("b", 2), engine("c", 3, drain=True)])
    roster.order(Orders({"x": engine("x", 9)}, {"a"}, {"b": True, "c": False}))
    assert [(e.name, e.draining) for e in fleet] == [("b", True), ("c", False), ("x", False)]
    assert roster.origin["x"] == OPERATOR and roster.known("a")
    roster.tell("file", [engine("a", 1), engine("b", 2), engine("c", 3, drain=True), engine("d", 4)])
    assert [(e.name, e.draining) for e in fleet] == [("b", True), ("c", False), ("d", False), ("x", False)]
    roster.order(Orders())
    assert [(e.name, e.draining) for e in fleet] == [("a", False), ("b", False), ("c", True), ("d", False)]
    fleet.close()


async def test_a_source_of_ones_own_is_followed() -> None:
    class Told:
        """A source that a test feeds."""

        name = "test"

        def __init__(self) -> None:
            self.news: asyncio.Queue[list[Wanted]] = asyncio.Queue()

        async def follow(self, tell: Tell) -> None:
            while True:
                tell(await self.news.get())

    async with doubles() as (p0, _, d0, d1):
        config = Settings(**FAST)
        source = Told()
        seam: Source = source
        names = [Wanted(double.name, double.url, Role(double.role), "m") for double in (p0, d0)]
        async with Gateway.around(App(Fleet(names), config, sources=[seam]), config) as gateway:
            source.news.put_nowait([Wanted("d1", d1.url, Role.DECODE, "m")])
            await until(lambda: "d1" in gateway.app.fleet.engines, 5)
            await until(lambda: gateway.app.fleet.engines["d1"].state is State.UP, 5)
            source.news.put_nowait([])
            await until(lambda: "d1" not in gateway.app.fleet.engines, 5)


# Processes.


async def test_sighup_reaches_all_workers(tmp_path: Path) -> None:
    async with doubles() as (p0, p1, d0, d1):
        path = written(tmp_path / "fleet.toml", (p0, d0))
        keys = tmp_path / "keys"
        keys.write_text("sk-old\n")
        port = fresh_port()
        argv = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port), "--workers", "2"]
        argv += ["--config", str(path), "--log-level", "warning", "--api-keys-file", str(keys)]
        process = await asyncio.to_thread(subprocess.Popen, argv)
        url = f"http://127.0.0.1:{port}"

        async def statuses(key: str) -> set[int]:
            """What requests on connections of their own, which any worker may accept, are answered with."""
            found = set()
            for _ in range(12):
                async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as http:
                    headers = {"authorization": f"Bearer {key}"}
                    found.add((await http.post("/v1/completions", json=BODY, headers=headers)).status_code)
            return found

        async def full() -> dict[str, Any]:
            async with asyncio.timeout(40):
                while True:
                    try:
                        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                            report: dict[str, Any] = (await http.get("/readyz?verbose")).json()
                        if report.get("workers") == 2 and report["ready"]:
                            return report
                    except httpx.HTTPError:
                        assert process.poll() is None
                    await asyncio.sleep(0.02)

        try:
            await full()
            assert await statuses("sk-old") == {200}
            keys.write_text("sk-new\n")
            os.kill(process.pid, signal.SIGHUP)
            async with asyncio.timeout(20):
                while await statuses("sk-new") != {200} or await statuses("sk-old") != {401}:
                    await asyncio.sleep(0.02)
            written(path, (p1, d1))
            async with asyncio.timeout(20):
                while [one["name"] for one in (await full())["engines"]] != ["p1", "d1"]:
                    await asyncio.sleep(0.02)
            before = counted(d0)
            assert await statuses("sk-new") == {200}
            assert counted(d0) == before and counted(d1) >= 12
        finally:
            process.terminate()
            try:
                assert await asyncio.to_thread(process.wait, 20) == 0
            finally:
                process.kill()


def test_a_launch_without_a_file_has_nothing_to_read() -> None:
    with pytest.raises(FleetError, match="nothing to read again"):
        Launch().read()
    file = FleetFile.parse({"models": {"m": {}}, "engines": [{"name": "b", "role": "both", "url": "http://x:1"}]})
    assert Launch(None, file, {"port": 9}).read()[1].settings.port == 9
