"""A gateway that ends: nobody loses a request, or is told so in words that a client can parse."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from gateway.index.embedded import Embedded
from tests.gateway.conftest import make_pair, until
from tests.gateway.test_changes import BODY, doubles
from tests.gateway.test_reload import written
from tests.ports import fresh_port, fresh_ports


async def test_what_is_under_way_ends_and_nothing_new_comes_in() -> None:
    async with make_pair() as pair:
        pair.decode.timing.decode_a_s = 0.02
        body = {**BODY, "max_tokens": 30, "stream": True}
        async with pair.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            pair.gateway.server.handle_exit(signal.SIGTERM, None)
            assert not pair.gateway.app.readiness.ready
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        with pytest.raises(httpx.ConnectError):
            await pair.http.get("/livez")


async def test_new_requests_are_served_until_the_balancer_has_noticed() -> None:
    async with make_pair(notice_s=1.0) as pair:
        assert (await pair.http.get("/readyz")).status_code == 200
        assert "connection" not in (await pair.http.get("/livez")).headers
        pair.gateway.server.handle_exit(signal.SIGTERM, None)
        for _ in range(3):
            answer = await pair.http.post("/v1/completions", json=BODY)
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close", "the next one goes elsewhere"
            assert (await pair.http.get("/readyz")).status_code == 503
        await until(lambda: not pair.gateway.server.servers[0].is_serving(), 10)


@pytest.mark.parametrize("stream", [True, False])
async def test_what_does_not_end_in_time_is_told_so(stream: bool) -> None:
    async with make_pair(drain_s=0.3) as pair:
        pair.decode.timing.decode_a_s = 0.05
        body = {**BODY, "max_tokens": 3000, "stream": stream}
        asked = asyncio.create_task(pair.http.post("/v1/completions", json=body))
        await until(lambda: pair.decode.stats.generated > 2, 10)
        pair.gateway.server.handle_exit(signal.SIGTERM, None)
        answer = await asked
        if stream:
            *events, last, end = answer.text.split("\n\n")
            assert end == "" and len(events) > 1
            assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events)
            assert last.startswith("event: error\ndata: ")
            error = json.loads(last.split("data: ")[1])["error"]
        else:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            error = answer.json()["error"]
        assert error["code"] == "shutting_down"
        await pair.decode.idle()
        assert pair.gateway.booked() == 0
        assert pair.gateway.metric("baton_requests_total", route="completions", model="m", outcome="dismissed") == 1


async def test_a_body_that_never_ends_is_told_so_too() -> None:
    async with make_pair(drain_s=0.2) as pair:
        host, _, port = pair.gateway.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        await until(lambda: any(c._answering for c in pair.gateway.server.server_state.connections), 5)  # type: ignore[union-attr]
        pair.gateway.server.handle_exit(signal.SIGTERM, None)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503") and b"shutting_down" in answer
        writer.close()


def serve(path: Path, port: int, *more: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(path), "--port", str(port)]
    return subprocess.Popen([*argv, "--log-level", "warning", *more])


async def ready(url: str, process: subprocess.Popen[bytes]) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http, asyncio.timeout(50):
        while True:
            assert process.poll() is None
            try:
                if (await http.get("/readyz")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("signals", [1, 2])
async def test_the_process_ends_in_order_and_a_second_signal_ends_it_now(tmp_path: Path, signals: int) -> None:
    async with doubles() as (p0, _, d0, _):
        path = written(tmp_path / "fleet.toml", (p0, d0), drain_s=30.0, notice_s=0.0)
        port = fresh_port()
        process = await asyncio.to_thread(serve, path, port)
        try:
            await ready(f"http://127.0.0.1:{port}", process)
            d0.timing.decode_a_s = 0.05
            body = {**BODY, "max_tokens": 60 if signals == 1 else 3000, "stream": True}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
                async with http.stream("POST", "/v1/completions", json=body) as answer:
                    lines = answer.aiter_lines()
                    await anext(lines)
                    process.send_signal(signal.SIGTERM)
                    await refused(port)
                    if signals == 1:
                        assert [line async for line in lines if line][-1] == "data: [DONE]"
                    else:
                        process.send_signal(signal.SIGTERM)
                        with pytest.raises(httpx.HTTPError):
                            [line async for line in lines]
            assert await asyncio.to_thread(process.wait, 20) == signals - 1
        finally:
            process.kill()


async def refused(port: int) -> None:
    """Wait until nobody listens there."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.01)


class Balancer:
    """A client that sends to whichever gateway said last that it is ready, as a load balancer does."""

    def __init__(self, urls: list[str]) -> None:
        self.up: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self._urls = urls
        self._turn = 0
        self._going = True
        self._http = httpx.AsyncClient(trust_env=False, timeout=30)

    async def run(self, lanes: int) -> None:
        checks = [asyncio.create_task(self._check(url)) for url in self._urls]
        await asyncio.gather(*(self._lane(lane) for lane in range(lanes)))
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        await self._http.aclose()

    async def _check(self, url: str) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            while True:
                try:
                    good = (await http.get(f"{url}/readyz")).status_code == 200
                except httpx.HTTPError:
                    good = False
                (self.up.add if good else self.up.discard)(url)
                await asyncio.sleep(0.02)

    async def _lane(self, lane: int) -> None:
        number = 0
        while self._going:
            if not self.up:
                await asyncio.sleep(0.01)
                continue
            self._turn += 1
            number += 1
            url = sorted(self.up)[self._turn % len(self.up)]
            stream = number % 2 == 0
            body = {**BODY, "prompt": f"{lane} {number} {BODY['prompt']}", "max_tokens": 6, "stream": stream}
            try:
                answer = await self._http.post(f"{url}/v1/completions", json=body)
            except httpx.HTTPError as error:
                self.outcomes[f"{type(error).__name__} {url}"] += 1
                continue
            good = answer.status_code == 200 and (not stream or answer.text.endswith("data: [DONE]\n\n"))
            self.outcomes["good" if good else f"{answer.status_code} {answer.text[-200:]}"] += 1

    async def more(self, count: int) -> None:
        goal = self.outcomes["good"] + count
        await until(lambda: self.outcomes["good"] >= goal, 40)

    def end(self) -> None:
        self._going = False


@pytest.mark.timeout(150)
async def test_every_gateway_is_replaced_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    """Two gateways with one Valkey, a balancer that asks for readiness: each is ended and started anew."""
    with Embedded() as valkey:
        async with doubles(events=True) as (p0, p1, d0, d1):
            for double in (d0, d1):
                double.timing.decode_a_s = 0.01
            path = written(tmp_path / "fleet.toml", (p0, p1, d0, d1), notice_s=1.0, redis=valkey.url, admin="")
            ports = fresh_ports()
            first, second = next(ports), next(ports)
            urls = [f"http://127.0.0.1:{port}" for port in (first, second)]
            running = {port: await asyncio.to_thread(serve, path, port) for port in (first, second)}
            balancer = Balancer(urls)
            load = asyncio.create_task(balancer.run(6))
            try:
                await asyncio.gather(*(ready(url, running[port]) for url, port in zip(urls, running, strict=True)))
                await balancer.more(30)
                for port, url in zip((first, second), urls, strict=True):
                    running[port].send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(running[port].wait, 40) == 0
                    await balancer.more(10)
                    running[port] = await asyncio.to_thread(serve, path, port)
                    await ready(url, running[port])
                    await balancer.more(20)
                balancer.end()
                await load
                assert set(balancer.outcomes) == {"good"}
            finally:
                balancer.end()
                for process in running.values():
                    process.kill()
                    await asyncio.to_thread(process.wait)
                await asyncio.wait((load,))
