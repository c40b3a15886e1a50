"""`baton up` and `baton demo` with real engines, from the command to the last process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.guard import descendants
from tests.engines_unit.baton import Baton
from tests.engines_unit.until import alive, until

pytestmark = pytest.mark.engines

ENGINES_S = 600.0
"""Two engines on two cores take one to two minutes, and longer beside other work."""
END_S = 60.0


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Baton]:
    """`baton up`, as a user without a GPU runs it; ended with all below it, whatever the test does."""
    it = Baton(tmp_path, *getattr(request, "param", ["up", "--no-sample"]))
    yield it
    it.clear()


def cores(baton: Baton) -> None:
    """Wait until both engines have started their core, a process of its own."""

    def below() -> int:
        baton.look()
        assert baton.process.poll() is None, baton.said
        return len([pid for pid in descendants(baton.process.pid) if b"EngineCore" in title(pid)])

    until(lambda: below() >= 2, ENGINES_S)


def title(pid: int) -> bytes:
    """The command line of a process; vLLM writes what a process is into it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.parametrize("started", [["demo"]], indirect=True)
def test_demo(started: Baton) -> None:
    """Five requests, split over both engines; then nothing is left and the status says that all went well."""
    started.shows("Ready at", ENGINES_S)
    started.look()
    assert started.ends(ENGINES_S) == 0, started.said
    assert "curl http://127.0.0.1" in started.said


@pytest.mark.parametrize("started", [["up"]], indirect=True)
def test_killed_while_serving(started: Baton) -> None:
    """After its sample, which it sends itself."""
    started.shows("Ctrl-C ends everything", ENGINES_S)
    assert started.answers("/readyz")
    cores(started)
    started.process.kill()
    assert started.ends(END_S) == -signal.SIGKILL


def test_killed_while_starting(started: Baton) -> None:
    cores(started)
    started.process.kill()
    assert started.ends(END_S) == -signal.SIGKILL


def test_ctrl_c_twice_while_starting(started: Baton) -> None:
    cores(started)
    started.process.send_signal(signal.SIGINT)
    started.shows("Ctrl-C again", END_S)
    started.process.send_signal(signal.SIGINT)
    assert started.ends(END_S) == 130


def test_guard_killed(started: Baton) -> None:
    """An engine's core does not notice that its server is gone; who is left ends it, and the engine starts again."""
    started.shows("Ctrl-C ends everything", ENGINES_S)
    cores(started)
    guard = next(pid for pid in descendants(started.process.pid) if b"guard.py" in title(pid))
    below = descendants(guard)
    os.kill(guard, signal.SIGKILL)
    until(lambda: not [pid for pid in below if alive(pid)], END_S)
    started.shows("starts again in", END_S)
    started.look()
    started.process.send_signal(signal.SIGINT)
    started.ends(END_S)
