"""`baton up` as a process, over engines that stand in for vLLM: whatever ends it ends everything."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.control import ask
from engines.guard import descendants
from tests.engines_unit import vllm_stub
from tests.engines_unit.baton import START_S, Baton
from tests.engines_unit.until import until


class Up(Baton):
    """One `baton up` with two stub engines, p0 and d0."""

    def __init__(self, folder: Path, *arguments: str, gpus: str = "") -> None:
        self.gpus = gpus
        super().__init__(folder, "up", *(arguments or ["--no-sample"]))

    def prepare(self) -> None:
        if not (self.folder / "vllm").exists():
            vllm_stub.write(self.folder)
        (self.folder / "fleet.toml").write_text(
            "[models.stub]\n[supervisor]\nbackoff_s = 0.05\ncrashes = 3\n"
            + "".join(
                f'[[engines]]\nname = "{name}"\nrole = "{role}"\nport = {next(self.ports)}\n{self.gpus}\n'
                f'env = {{PYTHONPATH = "{self.folder}", NAME = "{name}"}}\n'
                for name, role in (("p0", "prefill"), ("d0", "decode"))
            )
        )

    def arguments(self, *given: str) -> list[str]:
        return [given[0], "--fleet", str(self.folder / "fleet.toml"), "--port", str(self.port), *given[1:]]

    def starts(self, name: str) -> list[str]:
        """What an engine was started as, each time."""
        file = self.folder / f"started-{name}"
        return file.read_text().splitlines() if file.exists() else []

    def gateway(self) -> int:
        """The id of the gateway's process; 0 while there is none."""
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in descendants(self.process.pid)}
        return next((pid for pid in reversed(lines) if b"serve" in read(lines[pid])), 0)

    def status(self) -> list[dict[str, Any]]:
        """As `baton engines status --json` in its folder."""

        async def told() -> list[dict[str, Any]]:
            (answer,) = [line async for line in ask(self.folder / "state" / "engines.sock", {"verb": "status"})]
            services: list[dict[str, Any]] = answer["done"]
            return services

        return asyncio.run(told())

    def go(self, *names: str) -> None:
        """Let engines become ready."""
        for name in names:
            (self.folder / f"go-{name}").touch()

    def look(self) -> None:
        super().look()
        ids = self.folder / "ids"
        self.seen |= {int(word) for word in ids.read_text().split()} if ids.exists() else set()


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Started; ended with all below it, whatever the test does."""
    it = Up(tmp_path)
    yield it
    it.clear()


def loading(up: Up) -> None:
    """Both engines have started, none is ready."""
    up.shows("p0: loading weights")
    up.shows("d0: loading weights")
    up.look()
    assert len(up.seen) >= 1 + 2 * 4  # itself, and of each engine two guards, server and core


def half_ready(up: Up) -> None:
    """One engine is ready, the other is not."""
    up.go("p0")
    up.shows("p0: ready")
    up.look()


def serving(up: Up) -> None:
    """All is ready, the gateway too."""
    up.go("p0", "d0")
    up.shows("Ctrl-C ends everything")
    assert up.answers("/readyz")
    up.look()
    assert len(up.seen) >= 1 + 3 + 2 * 4


Stage = Callable[[Up], None]
STAGES = pytest.mark.parametrize("stage", [loading, half_ready, serving], ids=lambda stage: stage.__name__)
ENDED: dict[Stage, int] = {loading: 130, half_ready: 130, serving: 0}


@STAGES
@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end(up: Up, stage: Stage, what: signal.Signals) -> None:
    stage(up)
    up.process.send_signal(what)
    assert up.ends() == ENDED[stage]


@STAGES
def test_killed(up: Up, stage: Stage) -> None:
    stage(up)
    up.process.kill()
    assert up.ends() == -signal.SIGKILL


@STAGES
def test_asked_twice(up: Up, stage: Stage) -> None:
    """Engines that do not listen get ten seconds; a second Ctrl-C takes them."""
    (up.folder / "deaf").touch()
    stage(up)
    up.process.send_signal(signal.SIGINT)
    up.shows("Ctrl-C again")
    up.process.send_signal(signal.SIGINT)
    assert up.ends(within_s=8.0) == ENDED[stage]


class Shown(Up):
    """In a terminal, which goes when `process` does."""

    through = (sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])")


def test_terminal_closed(tmp_path: Path) -> None:
    """While its table moves there."""
    up = Shown(tmp_path)
    try:
        up.shows("loading weights")
        up.look()
        assert len(up.seen) >= 2 + 2 * 4
        up.process.kill()
        assert up.ends() == -signal.SIGKILL
    finally:
        up.clear()


def test_ended_at_once(up: Up) -> None:
    """Killed as soon as it has a first process below it."""
    until(lambda: descendants(up.process.pid), START_S)
    up.process.kill()
    up.look()
    assert up.ends() == -signal.SIGKILL


def test_engine_dies_while_starting(up: Up) -> None:
    loading(up)
    (up.folder / "die-d0").touch()
    assert up.ends() == 1
    assert "d0 ended with status 7" in up.said
    assert "RuntimeError: told to die" in up.said
    assert re.search(r"logs/d0\.log", up.said)


def test_engine_that_dies_later_is_started_again(up: Up) -> None:
    serving(up)
    (up.folder / "once-p0").touch()
    (up.folder / "die-p0").touch()
    up.shows("p0 ended with status 7; starts again in")
    until(lambda: len(up.starts("p0")) == 2, START_S)
    status = {one["name"]: one for one in up.status()}
    assert list(status) == ["p0", "d0", "gateway"] and status["p0"]["starts"] == 2
    assert "ended with status 7" in status["p0"]["why"]
    up.look()
    up.process.send_signal(signal.SIGINT)
    assert up.ends() == 0


def test_gateway_that_dies_again_and_again_ends_all(up: Up) -> None:
    serving(up)
    for _ in range(3):
        until(lambda: up.answers("/readyz"), START_S)
        up.look()
        os.kill(until(lambda: up.gateway(), START_S), signal.SIGKILL)
        until(lambda: not up.answers("/livez"), START_S)
    assert up.ends() == 1
    assert "gateway ended with status 137" in up.said


def test_shared_gpu_starts_one_after_another(tmp_path: Path) -> None:
    up = Up(tmp_path, gpus="gpus = [0]")
    try:
        up.shows("p0: loading weights")
        up.shows("d0: waiting for p0")
        up.go("p0")
        up.shows("d0: loading weights")
        up.look()
    finally:
        up.process.send_signal(signal.SIGTERM)
    assert up.ends() == 130


def test_second_in_the_same_folder(up: Up) -> None:
    loading(up)
    second = Up(up.folder)
    assert second.ends() == 1
    assert f"another `baton up` (process {up.process.pid})" in second.said
    up.process.send_signal(signal.SIGINT)
    assert up.ends() == 130


def test_gateway_port_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = Up(tmp_path, "--port", str(port))
        assert up.ends() == 1
    assert f"port {port} on 127.0.0.1: Address already in use" in up.said
    assert "--port" in up.said
    assert not (tmp_path / "ids").exists()


def test_fleet_file_in_error(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[models.m]\n[[engines]]\nname = "p"\nrole = "both"\nprot = 1\n')
    env = {**os.environ, "BATON_STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "gateway.cli", "up", "--fleet", str(file)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "engines.p.prot: unknown key" in ended.stderr
