"""Whatever becomes of the Redis that gateways share, requests are served; afterwards the index agrees with the engines.

Between the gateway and its servers stands a door, at whose address another server may answer all of a sudden.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.double import Double
from gateway.index.embedded import Embedded
from gateway.index.namespace import Namespace
from gateway.index.redis import link
from tests.gateway.conftest import Gateway, until
from tests.gateway.readers import DoubleReader
from tests.gateway.test_locality import caught_up, words
from tests.ports import fresh_ports

FACTS = {"x-baton-facts": "1"}
SIZES: dict[str, Any] = {"events": True, "num_blocks": 513, "max_model_len": 4096}


class Door:
    """An address (a unix socket) behind which is whatever server `to` names."""

    def __init__(self, folder: Path, to: str) -> None:
        self.url = f"unix://{folder}/door"
        self.to = to
        self._gone = False
        self._lost: set[asyncio.StreamWriter] = set()
        self.delay_s = 0.0
        self.commands = 0
        self._path = f"{folder}/door"
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    def vanish(self, gone: bool = True) -> None:
        """Whatever comes by a connection that there is, or is made now, is lost for ever, and none is closed."""
        self._gone = gone
        if gone:
            self._lost |= self._writers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        if self._gone:
            self._lost.add(writer)
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(self.to.removeprefix("unix://"))
            self._writers.add(back_writer)
            try:
                await asyncio.gather(
                    self._pass(reader, back_writer, writer, True), self._pass(back_reader, writer, writer, False)
                )
            finally:
                back_writer.close()
                self._writers.discard(back_writer)
        except OSError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: asyncio.StreamWriter, inward: bool
    ) -> None:
        try:
            while data := await reader.read(1 << 20):
                self.commands += inward
                if client in self._lost:
                    continue
                await asyncio.sleep(self.delay_s)
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    def cut(self) -> None:
        """All connections break."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next step


class Scene:
    """A gateway, four engines, a server behind a door, and another one in reserve."""

    def __init__(self, gateway: Gateway, doubles: list[Double], door: Door, one: Embedded, two: Embedded) -> None:
        self.gateway = gateway
        self.doubles = doubles
        self.door = door
        self.one = one
        self.two = two
        self._asked = 0

    async def ask(self, count: int) -> list[httpx.Response]:
        """Conversations that go on: every answer must be there and whole."""
        answers = []
        for _ in range(count):
            self._asked += 1
            said = f"{words(self._asked % 5, 90)} {words(self._asked, 20)}"
            body = {"model": "m", "prompt": said, "max_tokens": 3, "stream": self._asked % 2 == 0}
            answer = await self.gateway.http.post("/v1/completions", json=body, headers=FACTS)
            assert answer.status_code == 200, answer.text
            assert not body["stream"] or answer.text.endswith("data: [DONE]\n\n")
            answers.append(answer)
        assert self.gateway.booked() == 0
        return answers

    def namespace(self) -> Namespace:
        return next(iter(self.gateway.app.lookup.namespaces.values()))

    async def agrees(self) -> None:
        """Wait until Redis says of every engine what the engine itself says of its cache; then compare a prompt."""
        async with asyncio.timeout(30):
            while True:
                held = await self._held()
                right = {d.url: len(d.engine.pool.cached()) for d in self.doubles if d.engine.pool.cached()}
                if held == right and all(caught_up(d, self.namespace()) for d in self.doubles):
                    break
                await asyncio.sleep(0.02)
        assert sum(right.values()) > 20

    async def _held(self) -> dict[str, int]:
        try:
            holders = (await self.namespace().index.stats()).holders
        except Exception:
            return {}
        return {url: blocks for url, blocks in holders.items() if blocks}

    def lookups(self, outcome: str) -> float:
        return self.gateway.metric("baton_lookups_total", outcome=outcome)


@asynccontextmanager
async def scene(folder: Path, **settings: Any) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        ports = fresh_ports()
        one, two = (stack.enter_context(Embedded("", "--port", str(next(ports)))) for _ in range(2))
        door = Door(folder, one.url)
        await door.open()
        stack.push_async_callback(door.close)
        names = ("p0", "p1", "d0", "d1")
        doubles = [Double("prefill" if name[0] == "p" else "decode", name, **SIZES) for name in names]
        for double in doubles:
            await stack.enter_async_context(double)
        more = {"redis": door.url, "send_ids": True, "speculation_s": 0.01, **settings}
        gateway = await stack.enter_async_context(Gateway.over(*doubles, reader=DoubleReader(), **more))
        yield Scene(gateway, doubles, door, one, two)


def dies(s: Scene) -> Callable[[], None]:
    s.one.kill()
    s.door.cut()
    return s.one.start


def hangs(s: Scene) -> Callable[[], None]:
    assert s.one.process is not None
    pid = s.one.process.pid
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def vanishes(s: Scene) -> Callable[[], None]:
    """Its host is gone: no connection ever closes. Another server, empty, has its address in the end."""
    s.door.vanish()

    def back() -> None:
        s.door.vanish(False)
        s.door.to = s.two.url

    return back


def is_slow(s: Scene) -> Callable[[], None]:
    s.door.delay_s = 0.1

    def back() -> None:
        s.door.delay_s = 0.0

    return back


def is_emptied(s: Scene) -> Callable[[], None]:
    def empty() -> None:
        with s.one.client() as client:
            client.flushall()
            client.function_flush()

    empty()
    return empty


def fails_over(s: Scene) -> Callable[[], None]:
    """Its replica is the primary now and answers at its address; who is connected still talks to the old one."""
    with s.one.client() as old, s.two.client() as new:
        new.execute_command("REPLICAOF", "127.0.0.1", old.config_get("port")["port"])
        while new.info("replication")["master_link_status"] != "up":
            time.sleep(0.01)
        new.execute_command("REPLICAOF", "NO", "ONE")
        s.door.to = s.two.url
        old.execute_command("REPLICAOF", "127.0.0.1", new.config_get("port")["port"])
    return lambda: None


FAULTS = (dies, hangs, vanishes, is_slow, is_emptied, fails_over)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_requests_are_served_throughout_and_the_index_agrees_again(
    tmp_path: Path, fault: Callable[[Scene], Callable[[], None]]
) -> None:
    async with scene(tmp_path) as s:
        await s.gateway.enrolled()
        await s.ask(12)
        await s.agrees()
        back = await asyncio.to_thread(fault, s)
        await s.ask(20)
        if fault not in (is_emptied, fails_over):
            assert s.lookups("unavailable") > 0, "it went by load alone"
        await asyncio.to_thread(back)
        await s.ask(6)
        await s.agrees()
        before = s.lookups("hit")
        predicted = [int(answer.headers.get("x-baton-predicted-prefill", "0")) for answer in await s.ask(10)]
        assert s.lookups("hit") > before and max(predicted) > 0


async def test_a_server_that_is_not_there_at_the_start_is_used_when_it_comes(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        names = ("p0", "p1", "d0", "d1")
        doubles = [Double("prefill" if name[0] == "p" else "decode", name, **SIZES) for name in names]
        for double in doubles:
            await stack.enter_async_context(double)
        one = Embedded()
        door = Door(tmp_path, one.url)
        file: dict[str, Any] = {"redis": door.url, "send_ids": True, "speculation_s": 0.01}
        started = asyncio.create_task(stack.enter_async_context(Gateway.over(*doubles, reader=DoubleReader(), **file)))
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(doubles[0].url + "/health")).status_code == 200
        await asyncio.sleep(0)
        await door.open()
        stack.push_async_callback(door.close)
        one.start()
        stack.callback(one.__exit__, None, None, None)
        gateway = await started
        s = Scene(gateway, doubles, door, one, one)
        await s.ask(8)
        await s.agrees()


async def test_a_dead_server_costs_a_request_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is known to be dead, nothing is sent to it on behalf of requests but a probe now and then."""
    monkeypatch.setattr(link, "PROBE_S", 3600.0)
    async with scene(tmp_path) as s:
        await s.gateway.enrolled()
        await s.ask(4)
        s.door.vanish()
        await until(lambda: s.namespace().index._links._failures >= link.FAILURES, 10)  # type: ignore[attr-defined]
        await s.ask(1)
        sent, unknown = s.door.commands, s.lookups("unavailable")
        await s.ask(40)
        assert s.lookups("unavailable") - unknown == 40
        assert s.door.commands == sent
