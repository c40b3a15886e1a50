"""A name in DNS stands for all its addresses, now and later."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import dns.asyncresolver
import dns.message
import dns.rrset
import pytest

from engines.double import Double
from engines.fleet import Fleet
from gateway.app import App
from gateway.fleet.engine import State
from gateway.fleet.names import Names, resolve
from gateway.fleet.wanted import Wanted, of_file
from gateway.launch import Launch
from gateway.settings import Settings
from tests.gateway.conftest import FAST, Gateway
from tests.registry.hosts import until

FILE = {"models": {"*": {}}, "engines": [{"name": "e", "role": "both", "url": "dns+http://engines.test:9000"}]}


def wanted(names: Names) -> dict[str, str]:
    (one,) = of_file(Fleet.parse(FILE))
    return {meant.name: meant.url for meant in names.expand(one)}


@asynccontextmanager
async def following(names: Names) -> AsyncIterator[asyncio.Event]:
    changed = asyncio.Event()
    task = asyncio.create_task(names.follow(changed.set))
    yield changed
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_addresses_come_and_go_and_a_failure_changes_nothing() -> None:
    answers: list[list[tuple[str, int]] | OSError] = [[("10.0.0.1", 9000), ("::1", 9000)], OSError("no such host"), []]

    async def answer(name: str, port: int | None) -> list[tuple[str, int]]:
        assert (name, port) == ("engines.test", 9000)
        now = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(now, OSError):
            raise now
        return now

    names = Names(answer, pause_s=0.01)
    both = {"e@10.0.0.1:9000": "http://10.0.0.1:9000", "e@[::1]:9000": "http://[::1]:9000"}
    async with following(names) as changed:
        assert wanted(names) == {}
        await changed.wait()
        assert wanted(names) == both
        await until(lambda: "cannot be resolved: no such host" in str(names.trouble))
        await until(lambda: "it has no address" in str(names.trouble))
        assert wanted(names) == both
        changed.clear()
        answers[:] = [[("10.0.0.2", 9000)]]
        await changed.wait()
        assert wanted(names) == {"e@10.0.0.2:9000": "http://10.0.0.2:9000"}
        assert not names.trouble
        names.only(set())
        assert not names._found


async def test_requests_go_to_an_engine_by_name() -> None:
    async with Double("both", "b0") as double:
        port = double.url.rpartition(":")[2]
        engines = [{"name": "e", "role": "both", "url": f"dns+http://localhost:{port}"}]
        file = Fleet.parse({"models": {"*": {}}, "engines": engines})
        settings = Settings(**FAST)
        async with Gateway.around(App.of(Launch(), file, settings), settings) as one:
            await until(lambda: any(engine.state is State.UP for engine in one.app.fleet))
            assert {engine.name for engine in one.app.fleet} >= {f"e@127.0.0.1:{port}"}
            body = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
            assert (await one.http.post("/v1/chat/completions", json=body)).status_code == 200


class _Dns(asyncio.DatagramProtocol):
    """Answers every question with two services."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        name = query.question[0].name
        answer.answer = [dns.rrset.from_text(name, 1, "IN", "SRV", "0 5 8101 localhost.", "0 5 8102 localhost.")]
        self._transport.sendto(answer.to_wire(), peer)


async def test_services_tell_their_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Dns, local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    monkeypatch.setattr(dns.asyncresolver, "Resolver", lambda: resolver)
    found = await resolve("_engines._tcp.test", None)
    assert {port for _, port in found} == {8101, 8102}
    assert "127.0.0.1" in {host for host, _ in found}
    transport.close()


@pytest.mark.parametrize("url", ["http://h:1", "unix:///a"])
def test_addresses_are_themselves(url: str) -> None:
    one = Wanted("x", url, "both")  # type: ignore[arg-type]
    assert list(Names().expand(one)) == [one]
