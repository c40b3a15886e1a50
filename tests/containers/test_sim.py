"""`docker compose --profile sim up`: Baton and engine doubles, from the first container to the last."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.containers.baton import URL, chat, report, well
from tests.containers.engine import Engine
from tests.engines_unit.until import alive, until
from tests.namespace import Namespace

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]

BACK_S = 60.0


@pytest.fixture(scope="module")
def sim(engine: Engine) -> Iterator[Engine]:
    with engine.compose_up("sim"):
        yield engine


def test_all_is_healthy(sim: Engine, inside: Namespace) -> None:
    for name in ("redis", "gateway", "engines-sim"):
        assert sim.inspect(f"baton-{name}-1")["State"]["Health"]["Status"] == "healthy"
    assert {engine["state"] for engine in inside.run(report)["engines"]} == {"up"}


def test_nothing_may_be_written(sim: Engine) -> None:
    """No capability, a read-only root, no way to more rights: what compose.yaml asks for is what runs."""
    for name in ("redis", "gateway", "engines-sim"):
        known = sim.inspect(f"baton-{name}-1")
        assert known["Config"]["User"] == "10001:10001"
        assert known["HostConfig"]["ReadonlyRootfs"] and known["HostConfig"]["CapDrop"] == ["ALL"]
        assert known["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
        assert "Read-only" in sim.docker("exec", known["Id"], "touch", "/here", check=False)


def test_a_streamed_chat_goes_through(sim: Engine, inside: Namespace) -> None:
    """What the gateway relays is what an engine says when it is asked by itself."""
    said = inside.run(lambda: chat("Hello there", 24))
    assert said == inside.run(lambda: chat("Hello there", 24, "http://127.0.0.1:8103"))
    assert said[0] and said[1] == "length"


@pytest.mark.parametrize("port", [8101, 8103])
def test_an_engine_that_is_killed_comes_back(sim: Engine, inside: Namespace, port: int) -> None:
    engines = sim.processes("baton-engines-sim-1")
    killed = max(pid for pid, line in engines.items() if f"--port {port}" in line)  # its guards came before it
    os.kill(killed, signal.SIGKILL)
    until(lambda: not alive(killed), BACK_S)
    until(lambda: inside.run(lambda: well(f"http://127.0.0.1:{port}/health")), BACK_S)
    until(lambda: {engine["state"] for engine in inside.run(report)["engines"]} == {"up"}, BACK_S)
    assert inside.run(lambda: chat(f"Are you back at {port}?", 8))[1] == "length"


def test_the_end(sim: Engine, inside: Namespace) -> None:
    """SIGTERM lets a stream end; the gateway goes before engines and Redis; afterwards nothing is left."""
    begun = threading.Event()
    told: list[tuple[str, str | None]] = []
    stream = threading.Thread(target=lambda: told.append(inside.run(lambda: chat("A long one", 600, first=begun.set))))
    stream.start()
    assert begun.wait(BACK_S)
    sim.compose("--profile", "sim", "stop")
    assert not told or told[0][1] == "length"
    stream.join(BACK_S)
    assert told and told[0][1] == "length" and len(told[0][0]) >= 600
    for name in ("gateway", "engines-sim", "redis"):
        assert sim.inspect(f"baton-{name}-1")["State"]["ExitCode"] == 0, name
    sim.compose("--profile", "sim", "down", "--volumes")
    assert not sim.docker("ps", "--all", "--quiet") and not sim.docker("volume", "ls", "--quiet")
    assert not inside.run(lambda: well(f"{URL}/livez"))
