"""Several workers behind one port look like one gateway, and none of them is needed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.double import Double
from gateway.telemetry.lives import Lives
from gateway.telemetry.merge import merge
from tests.ports import fresh_port

BODY = {"model": "m", "prompt": "tell me", "max_tokens": 4}


@dataclass
class Crew:
    """A gateway with two workers, in front of a pair of doubles."""

    process: subprocess.Popen[bytes]
    url: str
    prefill: Double
    decode: Double

    def workers(self) -> list[psutil.Process]:
        return self._children(lambda process: "spawn_main" in " ".join(process.cmdline()))

    def valkey(self) -> list[psutil.Process]:
        return self._children(lambda process: "valkey" in process.name())

    def _children(self, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it ended just now
                if wanted(child):
                    found.append(child)
        return found

    async def ask(self, **more: Any) -> httpx.Response:
        """One request on a connection of its own, which any worker may accept."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20) as http:
            return await http.post("/v1/completions", json={**BODY, **more})

    async def report(self) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20) as http:
            found: dict[str, Any] = (await http.get("/readyz?verbose")).json()
            return found

    async def full(self) -> None:
        """Wait until both workers answer."""
        async with asyncio.timeout(60):
            while True:
                try:
                    report = await self.report()
                    if report.get("workers") == 2 and report["ready"]:
                        return
                except httpx.HTTPError:
                    assert self.process.poll() is None, "it ended"
                await asyncio.sleep(0.02)


@asynccontextmanager
async def crew() -> AsyncIterator[Crew]:
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d:
        port = fresh_port()
        argv = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port), "--workers", "2"]
        argv += ["--prefill", p.url, "--decode", d.url, "--log-level", "warning"]
        process = await asyncio.to_thread(subprocess.Popen, argv)
        made = Crew(process, f"http://127.0.0.1:{port}", p, d)
        try:
            await made.full()
            yield made
        finally:
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, 20)
            finally:
                process.kill()


async def ended(processes: list[psutil.Process]) -> None:
    """Wait until none of them is there."""
    async with asyncio.timeout(20):
        while any(_runs(process) for process in processes):
            await asyncio.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def metric(url: str, name: str) -> float:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        text = (await http.get("/metrics")).text
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(sample.value for sample in samples if sample.name == name)


async def test_two_workers_count_as_one_and_any_of_them_may_die() -> None:
    async with crew() as gateway:
        answers = await asyncio.gather(*(gateway.ask() for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        for _ in range(3):  # whoever answers tells of both
            assert await metric(gateway.url, "baton_requests_total") == 40
            assert await metric(gateway.url, "baton_request_duration_seconds_count") == 40
            assert await metric(gateway.url, "baton_engine_up") == 2

        one, _ = gateway.workers()
        one.kill()
        await ended([one])
        assert await metric(gateway.url, "baton_requests_total") == 40
        answers = await asyncio.gather(*(gateway.ask() for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        await gateway.full()
        for _ in range(3):  # what the dead one counted is not forgotten
            assert await metric(gateway.url, "baton_requests_total") == 60
            assert await metric(gateway.url, "baton_engine_up") == 2
        assert one.pid not in [worker.pid for worker in gateway.workers()]

        (valkey,) = gateway.valkey()
        valkey.kill()
        answers = await asyncio.gather(*(gateway.ask() for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        async with asyncio.timeout(20):
            while [server.pid for server in gateway.valkey()] in ([], [valkey.pid]):
                await asyncio.sleep(0.02)


async def test_sigterm_lets_a_stream_finish_and_leaves_nobody() -> None:
    async with crew() as gateway:
        gateway.decode.timing.decode_a_s = 0.05
        family = psutil.Process(gateway.process.pid).children(recursive=True)
        async with (
            httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http,
            http.stream("POST", "/v1/completions", json={**BODY, "max_tokens": 20, "stream": True}) as answer,
        ):
            lines = answer.aiter_lines()
            await anext(lines)
            gateway.process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
        assert await asyncio.to_thread(gateway.process.wait, 20) == 0
        await ended(family)


async def test_workers_do_not_outlive_their_parent() -> None:
    async with crew() as gateway:
        family = psutil.Process(gateway.process.pid).children(recursive=True)
        assert len(family) >= 3
        os.kill(gateway.process.pid, signal.SIGKILL)
        await ended(family)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policy", "nothing"], "nothing"),
        (["--api-keys-file", "/nowhere"], "api_keys_file"),
        (["--redis", "redis://127.0.0.1:1/0", "--port", "TAKEN"], "in use"),
        (["--workers", "1", "--port", "TAKEN"], "stop what listens there, or --port: choose another"),
    ],
)
async def test_what_no_worker_could_start_with_is_said_once(flags: list[str], says: str) -> None:
    taken = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = str(taken.sockets[0].getsockname()[1])
    argv = [sys.executable, "-m", "gateway.cli", "serve", "--workers", "2", "--prefill", "http://127.0.0.1:1"]
    argv += ["--decode", "http://127.0.0.1:2", *(port if flag == "TAKEN" else flag for flag in flags)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=30)
    taken.close()
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_counters_do_not_fall_when_a_worker_dies(tmp_path: Path) -> None:
    def text(count: int, busy: int) -> str:
        return (
            f"# TYPE c_total counter\nc_total {count}\n# TYPE baton_in_flight gauge\nbaton_in_flight {busy}\n"
            f'# TYPE h histogram\nh_bucket{{le="+Inf"}} {count}\nh_count {count}\nh_sum {count}\n'
        )

    def values(text: str) -> list[float]:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return [sample.value for sample in samples if sample.name in ("c_total", "h_count", "baton_in_flight")]

    one = Lives(tmp_path, 0, 2)
    assert values(one.all(text(5, 2), {1: text(7, 3)})) == [12, 5, 12]
    assert values(one.all(text(6, 2), {})) == [13, 2, 13]  # what is in flight there is not known
    other = Lives(tmp_path, 1, 2)
    assert values(other.own(text(1, 1))) == [8, 1, 8]
    for _ in range(2):
        assert values(other.all(text(1, 1), {0: text(6, 2)})) == [14, 3, 14]
    third = Lives(tmp_path, 1, 2)
    assert values(third.all(text(0, 0), {0: text(6, 2)})) == [14, 2, 14]


def test_merged_metrics_are_sums_where_that_makes_sense() -> None:
    own = Path(__file__).with_name("metrics_of_one_worker.txt").read_text()
    merged = merge([own, own]).decode()
    values = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(merged) for s in f.samples}
    once = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(own) for s in f.samples}
    assert values.keys() == once.keys()
    for key, value in once.items():
        same = key[0] in ("baton_engine_up", "baton_index_blocks", "baton_build_info")
        assert values[key] == (value if same else 2 * value), key
