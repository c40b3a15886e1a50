"""On a real engine: a stream that breaks goes on from its ids, and reads as if it had never broken."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

import policies.contract as contract
from engines.fleet import Fleet
from engines.keeper import Keeper
from engines.layout import on_cpu
from engines.spec import Spec
from engines.supervisor import Supervisor
from engines.tiny_model import make_tiny_model
from policies.contract import Placement, Request
from tests.ports import fresh_ports
from tests.real.test_pair import CHAT, COMPLETIONS, substance, text

pytestmark = [pytest.mark.engines, pytest.mark.asyncio(loop_scope="module")]


class First:
    """The first engine, as long as it is there."""

    def place(self, request: Request, fleet: contract.Fleet) -> Placement:
        return Placement(decode=fleet.decoders[0].name, reason="first")


class Breaker:
    """A way to an engine that breaks off streams: the same engine by another address."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.after = 0
        """Tokens of the next stream, by events; 0: it does not break."""
        self.broken = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        forth = asyncio.create_task(self._forth(reader, back))
        events = 0
        try:
            while data := await there.read(1 << 16):
                events += data.count(b'"finish_reason":null')
                if self.after and events > self.after:
                    self.after, self.broken = 0, self.broken + 1
                    break
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            forth.cancel()
            for end in (writer, back):
                end.close()

    @staticmethod
    async def _forth(reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            back.write(data)
            await back.drain()
        back.close()


class Real:
    def __init__(self, model: str, breaker: Breaker, gateway: httpx.AsyncClient, engine: httpx.AsyncClient) -> None:
        self.model = model
        self.breaker = breaker
        self.gateway = gateway
        self.engine = engine

    async def moved(self) -> float:
        page = (await self.gateway.get("/metrics")).text
        lines = [line for line in page.splitlines() if line.startswith('baton_migrations_total{outcome="moved"}')]
        return float(lines[0].split()[-1]) if lines else 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    folder = tmp_path_factory.mktemp("migration")
    model = make_tiny_model(folder / "tiny-llama")
    ports = fresh_ports()
    served = on_cpu(model, ports).models[model.name].model_dump()
    alone = {"name": "e0", "role": "both", "port": next(ports), "device": "cpu"}
    fleet = Fleet.parse({"models": {model.name: served}, "engines": [alone]})
    supervisor = Supervisor(folder)
    url, port = fleet.url(fleet.engines[0]), next(ports)
    breaker = Breaker(alone["port"])  # type: ignore[arg-type]
    server = await asyncio.start_server(breaker, "127.0.0.1", next(ports))
    broken = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    engines = [
        {"name": name, "role": "both", "url": at, "model": model.name} for name, at in (("a", broken), ("b", url))
    ]
    seen = Fleet.parse({"models": {model.name: served}, "engines": engines})
    (folder / "seen.toml").write_text(seen.to_toml())
    serve = [sys.executable, "-m", "gateway.cli", "serve", "-c", str(folder / "seen.toml"), "--port", str(port)]
    serve += ["--policy", f"{__name__}:First"]
    try:
        await supervisor.ready(supervisor.add(list(Keeper(supervisor, fleet).specs().values()), patient=False))
        gateway = Spec("gateway", tuple(serve), f"http://127.0.0.1:{port}/readyz")
        await supervisor.ready(supervisor.add([gateway], patient=False))
        timeout: dict[str, Any] = {"timeout": 300, "trust_env": False}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", **timeout) as http:
            async with httpx.AsyncClient(base_url=url, **timeout) as engine:
                yield Real(model.name, breaker, http, engine)
    finally:
        await supervisor.stop()
        server.close()


def unbroken(raw: str) -> list[Any]:
    """What must be equal, and what must be one for the whole stream."""
    datas = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    events = [json.loads(data) for data in datas[:-1]]
    for name in ("id", "created", "model"):
        assert len({event[name] for event in events}) == 1, name
    assert not any(choice.get("token_ids") for event in events for choice in event["choices"])
    assert not any(event.get("prompt_token_ids") for event in events)
    roles = sum("role" in choice.get("delta", {}) for event in events for choice in event["choices"])
    return [roles, *substance(raw, streamed=True)]


async def test_a_stream_that_breaks_reads_as_if_it_had_not(real: Real) -> None:
    """Greedy text, at many places; the tiny model writes half characters, too."""
    for number, after in enumerate((1, 2, 3, 5, 8, 13, 21, 30)):
        for path in (CHAT, COMPLETIONS):
            prompt = text(number, 40)
            body: dict[str, Any] = {
                "model": real.model,
                "max_tokens": 32,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            body |= {"messages": [{"role": "user", "content": prompt}]} if path == CHAT else {"prompt": prompt}
            right = (await real.engine.post(path, json=body)).text
            real.breaker.after = after
            told = (await real.gateway.post(path, json=body)).text
            real.breaker.after = 0
            assert unbroken(told) == unbroken(right), (path, after)
    assert await real.moved() >= 4  # then the engine that breaks so often is not asked for a while


@pytest.mark.parametrize("include", [False, True])
async def test_stop_strings_hold_across_the_cut(real: Real, include: bool) -> None:
    for number in range(8):
        body: dict[str, Any] = {"model": real.model, "prompt": text(100 + number, 30), "max_tokens": 32}
        body |= {"temperature": 0, "stream": True}
        whole = substance_text((await real.engine.post(COMPLETIONS, json=body)).text)
        at = 10 + 3 * number
        body |= {"stop": [whole[at : at + 7] or "zz"], "include_stop_str_in_output": include}
        right = (await real.engine.post(COMPLETIONS, json=body)).text
        real.breaker.after = 6
        told = (await real.gateway.post(COMPLETIONS, json=body)).text
        real.breaker.after = 0
        assert substance_text(told) == substance_text(right), number
        assert told.endswith("data: [DONE]\n\n")
        assert '"error"' not in told


def substance_text(raw: str) -> str:
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    return "".join(choice.get("text", "") for event in events for choice in event.get("choices", ()))
