"""An operator looks after a running gateway: by its admin listener, by `baton fleet`, over all its workers."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.double import Double
from gateway.api import address
from gateway.app import App, fleet_of
from gateway.launch import Launch
from gateway.settings import Settings, SettingsError
from tests.gateway.conftest import FAST, Gateway, until
from tests.gateway.test_changes import BODY, Load, counted, doubles
from tests.gateway.test_reload import written
from tests.ports import fresh_port


@asynccontextmanager
async def administered(path: Path, *engines: Double, **more: Any) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """A gateway with its fleet file and admin socket in this folder, and a client on that socket."""
    launch = Launch(written(path / "fleet.toml", engines), None, {**FAST, "admin": f"unix://{path}/admin", **more})
    file, effective = launch.read()
    door = address.bind(effective.settings)
    assert door is not None
    app = App(fleet_of(file, effective.settings), effective.settings, launch=launch, doors=[door])
    async with Gateway.around(app, effective.settings) as gateway:
        kind = effective.settings.admin.startswith("unix")
        transport = httpx.AsyncHTTPTransport(uds=f"{path}/admin") if kind else None
        base = "http://gateway" if kind else f"http://127.0.0.1:{door.getsockname()[1]}"
        async with httpx.AsyncClient(transport=transport, base_url=base, timeout=20, trust_env=False) as admin:
            yield gateway, admin


async def baton(*words: str) -> subprocess.CompletedProcess[str]:
    """`baton fleet ...` as a process of its own."""
    argv = [sys.executable, "-m", "gateway.cli", "fleet", *words]
    return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60)


async def test_drain_resume_remove_and_add_under_load(tmp_path: Path) -> None:
    async with doubles() as (p0, p1, d0, d1):
        async with administered(tmp_path, p0, p1, d0, policy="round_robin") as (gateway, admin):
            fleet = gateway.app.fleet
            load = Load(gateway)
            await load.more(10)

            report = (await admin.post("/fleet/p0/drain")).json()
            assert [(one["name"], one["draining"], one["source"]) for one in report["engines"]] == [
                ("p0", True, "fleet file"),
                ("p1", False, "fleet file"),
                ("d0", False, "fleet file"),
            ]
            await until(lambda: fleet.engines["p0"].idle, 10)
            before = counted(p0)
            await load.more(10)
            assert counted(p0) == before
            assert (await admin.post("/fleet/p0/resume")).status_code == 200
            await load.more(10)
            assert counted(p0) > before

            added = await admin.post("/fleet", json={"url": d1.url, "role": "decode"})
            assert added.status_code == 200
            assert [(one["name"], one["source"]) for one in added.json()["engines"]][-1] == ("d1", "operator")
            await until(lambda: counted(d1) > 0, 10)
            assert (await admin.delete("/fleet/d0")).status_code == 200
            await until(lambda: set(fleet.engines) == {"p0", "p1", "d1"} and not fleet.leaving, 10)
            before = counted(d0)
            await load.more(10)
            assert counted(d0) == before

            written(tmp_path / "fleet.toml", (p0, p1, d0), session_s=5.0)
            done = (await admin.post("/reload")).json()
            assert done["settings"] == {"session_s": 5.0}
            assert set(fleet.engines) == {"p0", "p1", "d1"}, "orders outlive a reload"
            assert (await admin.post("/fleet/d0/resume")).status_code == 200
            assert set(fleet.engines) == {"p0", "p1", "d0", "d1"}
            assert (await admin.delete("/fleet/d1")).status_code == 200
            await until(lambda: set(fleet.engines) == {"p0", "p1", "d0"} and not fleet.leaving, 10)
            await load.end()


async def test_what_cannot_be_done_says_why(tmp_path: Path) -> None:
    async with doubles() as (p0, _, d0, _), administered(tmp_path, p0, d0) as (gateway, admin):
        for method, path, body, status, says in (
            ("POST", "/fleet/x/drain", None, 404, "there are p0, d0"),
            ("DELETE", "/fleet/x", None, 404, "there are p0, d0"),
            ("POST", "/fleet/p0/explode", None, 404, "There is no"),
            ("POST", "/fleet", {"url": p0.url, "role": "prefill"}, 409, "p0 is at"),
            ("POST", "/fleet", {"url": "http://127.0.0.1:1", "role": "prefill", "name": "d0"}, 409, "d0 is at"),
            ("POST", "/fleet", {"url": "nowhere", "role": "prefill"}, 400, "give http://host:port"),
            ("POST", "/fleet", {"url": "http://127.0.0.1:1", "role": "juggler"}, 400, "juggler"),
            ("POST", "/fleet", {"url": "http://127.0.0.1:1", "role": "both", "name": "a b"}, 400, "is no name"),
            ("POST", "/fleet", {"role": "both"}, 400, "url"),
        ):
            answer = await admin.request(method, path, json=body)
            assert answer.status_code == status, path
            assert says in answer.json()["error"]["message"]
        (tmp_path / "fleet.toml").write_text("[[[")
        answer = await admin.post("/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "reload_refused")
        assert set(gateway.app.fleet.engines) == {"p0", "d0"}
        config = (await admin.get("/config")).json()
        assert "not TOML" in config["refused"]


async def test_nothing_of_it_is_on_the_public_port(tmp_path: Path) -> None:
    async with doubles() as (p0, _, d0, _), administered(tmp_path, p0, d0) as (gateway, admin):
        for method, path in (("GET", "/fleet"), ("POST", "/fleet/p0/drain"), ("POST", "/reload"), ("GET", "/config")):
            assert (await gateway.http.request(method, path)).status_code == 404
            assert (await admin.request(method, path)).status_code == 200
        assert not (tmp_path / "admin").stat().st_mode & 0o077
        proxied = {"x-forwarded-for": "10.0.0.7"}
        for path in ("/readyz?verbose", "/index"):
            assert (await gateway.http.get(path, headers=proxied)).status_code == 403
            assert (await gateway.http.get(path)).status_code < 400 or path == "/readyz?verbose"
            assert (await admin.get(path)).status_code in (200, 503)


async def test_by_tcp_a_key_is_asked_for(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("admin-key\n")
    async with doubles() as (p0, _, d0, _):
        tcp = {"admin": "127.0.0.1:0", "admin_keys_file": str(keys), "redis": ""}
        async with administered(tmp_path, p0, d0, **tcp) as (_, admin):
            assert (await admin.get("/fleet")).status_code == 401
            assert (await admin.post("/fleet/p0/drain")).status_code == 401
            good = {"authorization": "Bearer admin-key"}
            assert (await admin.get("/fleet", headers=good)).status_code == 200


def test_an_address_that_others_reach_needs_a_key() -> None:
    for bad in ("0.0.0.0:8001", "[::]:8001", "10.0.0.1:8001", "gateway.example:8001"):
        with pytest.raises(SettingsError, match="admin_keys_file"):
            address.check(Settings(admin=bad))
        address.check(Settings(admin=bad, admin_keys_file="keys"))
    for bad in ("8001", "http://127.0.0.1:8001", "127.0.0.1:", "unix:relative"):
        with pytest.raises(SettingsError, match="give host:port"):
            address.check(Settings(admin=bad))
    for good in ("", "auto", "unix:///x", "127.0.0.1:8001", "[::1]:8001", "localhost:8001"):
        address.check(Settings(admin=good))


async def test_the_command_reaches_all_workers_and_those_that_are_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with doubles() as (p0, p1, d0, d1):
        port = fresh_port()
        path = written(tmp_path / "fleet.toml", (p0, p1, d0, d1))
        argv = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port), "--workers", "2"]
        argv += ["--config", str(path), "--log-level", "warning", "--policy", "round_robin"]
        process = await asyncio.to_thread(subprocess.Popen, argv)
        here = ("--port", str(port), "--json")

        async def asked(count: int = 12) -> None:
            for _ in range(count):
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:
                    assert (await http.post("/v1/completions", json=BODY)).status_code == 200

        async def full() -> dict[str, Any]:
            async with asyncio.timeout(50):
                while True:
                    done = await baton("list", *here)
                    report: dict[str, Any] = json.loads(done.stdout or "{}")
                    if report.get("workers") == 2 and report["ready"]:
                        return report
                    assert process.poll() is None

        try:
            await full()
            done = await baton("drain", "p0", *here)
            assert done.returncode == 0, done.stderr
            assert [one["draining"] for one in json.loads(done.stdout)["engines"]] == [True, False, False, False]
            before = counted(p0)
            await asked()
            assert counted(p0) == before and counted(p1) >= 12
            done = await baton("remove", "d0", *here)
            assert [one["name"] for one in json.loads(done.stdout)["engines"] if one["source"] != "leaving"] == [
                "p0", "p1", "d1",
            ]  # fmt: skip

            children = (await asyncio.to_thread(subprocess.run, ["pgrep", "-P", str(process.pid), "-f", "spawn_main"],
                                                capture_output=True, text=True)).stdout.split()  # fmt: skip
            os.kill(int(children[0]), 9)
            await until(lambda: not Path(f"/proc/{children[0]}/cmdline").exists(), 20)
            await full()
            both = counted(p0), counted(d0)
            await asked()
            assert (counted(p0), counted(d0)) == both, "the new worker knows the orders"

            shown = await baton("list", "--port", str(port))
            assert "draining" in shown.stdout and "operator" not in shown.stdout
            assert "p0" in (await baton("resume", "p0", "--port", str(port))).stdout
            refused = await baton("drain", "x", *here)
            assert refused.returncode == 1 and "there are p0, p1, d1" in refused.stderr
            reloaded = await baton("reload", "--port", str(port))
            assert reloaded.returncode == 0 and "fleet: nothing changed" in reloaded.stdout
            configured = json.loads((await baton("config", *here)).stdout)
            assert configured["settings"]["policy"] == {"value": "round_robin", "from": "--policy", "live": False}
        finally:
            process.terminate()
            try:
                assert await asyncio.to_thread(process.wait, 30) == 0
            finally:
                process.kill()
        gone = await baton("list", *here)
        assert gone.returncode == 1 and "is a gateway running there?" in gone.stderr
