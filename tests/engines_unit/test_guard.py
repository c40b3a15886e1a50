"""Nothing outlives its guard, whoever is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.guard import descendants
from engines.process import GUARD
from tests.engines_unit.until import alive, until

LEAF = "echo $$ >> {ids}; exec sleep 600"
TREES = {
    "child": f"sh -c '{LEAF}' & {LEAF}",
    "grandchild": f"sh -c \"sh -c '{LEAF}' & {LEAF}\" & {LEAF}",
    "orphan": f"sh -c \"sh -c '{LEAF}' & exit\"; {LEAF}",
    "orphan in its own session": f"sh -c \"setsid sh -c '{LEAF}' & exit\"; {LEAF}",
    "deaf": f"trap '' TERM HUP INT; sh -c '{LEAF}' & {LEAF}",
}
"""Commands whose every process writes its id and then stays."""
SIZES = {"grandchild": 3}


def start(command: str, ids: Path, grace_s: float = 0.3, parent: str = "$$") -> subprocess.Popen[bytes]:
    """A parent process that runs `command` under a guard."""
    argv = [sys.executable, "-SE", GUARD, "--grace", str(grace_s), "--leftover", "0.1"]
    words = " ".join(f"'{word}'" for word in argv)
    script = f'{words} --parent {parent} -- sh -c "$COMMAND" & wait'
    env = {**os.environ, "COMMAND": command.format(ids=ids)}
    return subprocess.Popen(["sh", "-c", script], env=env, start_new_session=True)


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A parent, and everything below it: first the outer guard, then the inner one, then the tree."""
    ids = tmp_path / "ids"
    with start(TREES[request.param], ids) as parent:
        size = SIZES.get(request.param, 2)
        until(lambda: ids.exists() and len(ids.read_text().split()) == size)
        below = descendants(parent.pid)
        assert {int(line) for line in ids.read_text().split()} <= set(below)
        try:
            yield parent, below
        finally:
            for pid in (parent.pid, *below):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)


def gone(pids: list[int]) -> None:
    """Wait until none of these is left."""
    until(lambda: not [pid for pid in pids if alive(pid)])


Tree = tuple[subprocess.Popen[bytes], list[int]]


def test_parent_killed(tree: Tree) -> None:
    parent, below = tree
    parent.kill()
    gone(below)


def test_outer_guard_killed(tree: Tree) -> None:
    _, below = tree
    os.kill(below[0], signal.SIGKILL)
    gone(below)


def test_inner_guard_killed(tree: Tree) -> None:
    _, below = tree
    os.kill(below[1], signal.SIGKILL)
    gone(below)


def test_parent_and_outer_guard_killed(tree: Tree) -> None:
    parent, below = tree
    parent.kill()
    os.kill(below[0], signal.SIGKILL)
    gone(below)


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_told_to_end(tree: Tree, what: signal.Signals) -> None:
    parent, below = tree
    os.kill(below[0], what)
    gone(below)
    assert parent.wait() == 0


def test_told_twice(tmp_path: Path) -> None:
    """The second signal does not wait for the grace."""
    ids = tmp_path / "ids"
    with start(TREES["deaf"], ids, grace_s=600) as parent:
        until(lambda: ids.exists() and len(ids.read_text().split()) == 2)
        below = descendants(parent.pid)
        os.kill(below[0], signal.SIGTERM)
        until(lambda: not pending(below[0], signal.SIGTERM))
        os.kill(below[0], signal.SIGTERM)
        gone(below)


def pending(pid: int, what: signal.Signals) -> bool:
    """True while a signal waits to be taken."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (what - 1) & 1 for mask in masks)


@pytest.mark.parametrize("code", [0, 3])
def test_status_of_the_command(code: int) -> None:
    argv = [
        sys.executable,
        "-SE",
        GUARD,
        "--leftover",
        "0.1",
        "--parent",
        str(os.getpid()),
        "--",
        "sh",
        "-c",
        f"exit {code}",
    ]
    assert subprocess.run(argv, check=False).returncode == code


def test_status_of_a_killed_command() -> None:
    argv = [
        sys.executable,
        "-SE",
        GUARD,
        "--leftover",
        "0.1",
        "--parent",
        str(os.getpid()),
        "--",
        "sh",
        "-c",
        "kill -9 $$",
    ]
    assert subprocess.run(argv, check=False).returncode == 137


def test_unknown_command_is_named() -> None:
    argv = [sys.executable, "-SE", GUARD, "--leftover", "0.1", "--parent", str(os.getpid()), "--", "no-such-command"]
    ended = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert ended.returncode == 127
    assert "no-such-command" in ended.stderr


def test_parent_gone_before_the_guard_looks(tmp_path: Path) -> None:
    """Nothing is started for a parent that is not there."""
    mark = tmp_path / "mark"
    argv = [sys.executable, "-SE", GUARD, "--parent", "1", "--", "touch", str(mark)]
    assert subprocess.run(argv, check=False).returncode == 1
    assert not mark.exists()


def test_what_a_command_leaves_behind_ends(tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    command = f"sh -c '{LEAF.format(ids=ids)}' & while [ ! -s {ids} ]; do :; done"
    argv = [sys.executable, "-SE", GUARD, "--leftover", "0.1", "--parent", str(os.getpid()), "--", "sh", "-c", command]
    assert subprocess.run(argv, check=False).returncode == 0
    assert not alive(int(ids.read_text()))


SHARING = """
import time
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=64)
print(memory.name, flush=True)
time.sleep(600)
"""


def test_shared_memory_of_a_killed_command_is_removed() -> None:
    """Python's resource tracker does that, if it is let."""
    argv = [sys.executable, "-SE", GUARD, "--parent", str(os.getpid()), "--", sys.executable, "-c", SHARING]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as guard:
        assert guard.stdout is not None
        memory = Path("/dev/shm") / guard.stdout.readline().strip()
        assert memory.exists()
        guard.send_signal(signal.SIGQUIT)
        assert guard.wait() == 137
    assert not memory.exists()
