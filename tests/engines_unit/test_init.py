"""As process 1 of a container: signals are passed on, orphans are reaped, nothing is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.guard import descendants
from tests.engines_unit.engines import RULES, Engines
from tests.engines_unit.until import alive, until

PROGRAM = """
import os, signal, subprocess, sys, time
from engines.init import stay_as_init
stay_as_init(always=True)
subprocess.run(["sh", "-c", "sleep 0.2 & sleep 600 &"])  # two orphans, one of which ends soon
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def init() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as started:
        yield started
        below = descendants(started.pid)
        started.kill()
        for pid in below:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def zombies(parent: int) -> int:
    stats = [stat.read_text().rpartition(")")[2].split()[:2] for stat in Path("/proc").glob("[0-9]*/stat")]
    return sum(state == "Z" and int(ppid) == parent for state, ppid in stats)


@pytest.mark.parametrize(("what", "status"), [(signal.SIGTERM, 5), (signal.SIGKILL, 137)])
def test_orphans_are_reaped_and_nothing_is_left(init: subprocess.Popen[str], what: signal.Signals, status: int) -> None:
    assert init.stdout is not None
    child = int(init.stdout.readline())
    until(lambda: len(descendants(init.pid)) == 2)  # the program, and the orphan that stays
    assert zombies(init.pid) == 0
    below = descendants(init.pid)
    os.kill(init.pid if what == signal.SIGTERM else child, what)
    assert init.wait(20) == status
    until(lambda: not any(map(alive, below)))


def test_its_own_death_ends_all(init: subprocess.Popen[str]) -> None:
    assert init.stdout is not None
    child = int(init.stdout.readline())
    init.kill()
    until(lambda: not alive(child))


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode != 0, reason="no pid namespaces"
)
def test_engines_up_as_process_1(tmp_path: Path) -> None:
    it = Engines(tmp_path, "both", rules=RULES, through=NAMESPACE)
    try:
        it.go("b0")
        it.shows("Ctrl-C ends everything")
        init = descendants(it.process.pid)[0]
        below = descendants(init)
        assert zombies(init) == 0
        os.kill(init, signal.SIGTERM)
        assert it.process.wait(20) == 0
        until(lambda: not any(map(alive, below)))
    finally:
        it.clear()
