"""`baton engines up` as a process, over stubs of vLLM: what fails comes back, or is named with its mend."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.guard import descendants
from tests.engines_unit.baton import START_S
from tests.engines_unit.engines import RULES, Engines
from tests.engines_unit.until import alive, until

Start = Callable[..., Engines]


def gone(pids: list[int]) -> None:
    """Wait until none of these is left."""
    until(lambda: not any(map(alive, pids)))


def test_started_kept_asked_and_ended(start: Start) -> None:
    it = start()
    it.shows("p0: loading weights")
    assert it.status()["p0"]["stage"] == "loading weights"
    it.serving()
    status = {e["name"]: e for e in json.loads(it.ask("status", "--json").stdout)}
    assert [(e["phase"], e["starts"], e["role"]) for e in status.values()] == [
        ("ready", 1, "prefill"),
        ("ready", 1, "decode"),
    ]
    argv = it.starts("d1")[0]["argv"]
    assert argv[argv.index("--shutdown-timeout") + 1] == "2"
    assert "Starting vLLM server on" in it.ask("logs", "p0").stdout
    assert "p0 | " in it.ask("logs", "p0", "-n", "1").stdout
    again = it.ask("restart", "p0")
    assert again.returncode == 0, again.stderr
    assert "p0: ready after" in again.stdout
    assert len(it.starts("p0")) == 2
    assert it.ask("drain", "p0").returncode == 0
    assert it.phase("p0") == "stopped"
    assert "there is no x here, only p0, d1" in it.ask("restart", "x").stderr
    assert it.asked_to_end() == 0
    assert "no supervisor answers" in it.ask("status").stderr


def test_children_that_are_killed_come_back(start: Start) -> None:
    """Each of them: outer guard, inner guard, server."""
    it = start("both", rules="backoff_s = 0.05\n")
    it.serving()
    for below in range(3):
        tree = descendants(it.process.pid)
        os.kill(tree[below], signal.SIGKILL)
        gone(tree)
        came_back(it, below + 2)
        it.look()
    assert len(it.starts("b0")) == 4
    assert it.asked_to_end() == 0


def came_back(it: Engines, starts: int) -> None:
    """Wait until b0 was started so often, and is ready."""
    until(lambda: len(it.starts("b0")) == starts, START_S)
    until(lambda: it.phase("b0") == "ready", START_S)


def test_killed(start: Start) -> None:
    it = start()
    it.serving()
    it.process.kill()
    assert it.ends() == -signal.SIGKILL


@pytest.mark.parametrize("kept", [False, True])
def test_its_parent_is_killed(start: Start, kept: bool) -> None:
    """It ends in order, with a word; with nohup it stays, and can still be asked."""
    it = start("both", through=["sh", "-c", f'{"nohup " * kept}"$@" & wait', "sh"])
    it.serving()
    it.process.kill()
    if kept:
        it.process.wait()
        assert it.phase("b0") == "ready"
        os.kill(next(pid for pid in it.seen if b"gateway.cli" in cmdline(pid)), signal.SIGTERM)
    assert it.ends() == -signal.SIGKILL
    assert ("what started this is gone (nohup or setsid keeps it): ending everything" in it.said) != kept


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_an_engine_that_hangs_is_started_again(start: Start) -> None:
    it = start("both", rules=RULES + "health_s = 0.5\n")
    it.serving()
    (it.folder / "hang-b0").touch()
    it.shows("b0 lives, but has not answered /health for")
    (it.folder / "hang-b0").unlink()
    until(lambda: len(it.starts("b0")) == 2, START_S)
    assert it.asked_to_end() == 0


def test_an_engine_whose_work_stands_still_is_started_again(start: Start) -> None:
    it = start("both", rules=RULES + "stall_s = 0.5\n")
    it.serving()
    (it.folder / "busy-b0").touch()
    it.shows("b0 has 1 requests, and no token for")
    (it.folder / "busy-b0").unlink()
    until(lambda: len(it.starts("b0")) == 2, START_S)
    assert it.asked_to_end() == 0


def test_given_up_after_crashes_the_others_serve_on(start: Start) -> None:
    it = start()
    it.serving()
    (it.folder / "die-p0").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    it.shows("given up after 3 times")
    assert "p0 ended with status 7: its GPU's memory does not suffice: lower gpu_memory_utilization" in it.said
    status = it.status()
    assert (status["p0"]["phase"], status["p0"]["starts"], status["d1"]["phase"]) == ("failed", 3, "ready")
    (it.folder / "die-p0").unlink()
    assert it.ask("restart", "p0").returncode == 0  # somebody has mended it
    assert it.asked_to_end() == 0


@pytest.mark.parametrize(
    ("last", "mend"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "lower gpu_memory_utilization or max_model_len, or raise tp"),
        ("OSError: org/x is not a local folder and is not a valid model identifier", "there is no model org/x"),
        ("RuntimeError: No CUDA GPUs are available", "compare `gpus` with `nvidia-smi -L`"),
    ],
)
def test_what_cannot_start_ends_in_a_line_with_the_mend(start: Start, tmp_path: Path, last: str, mend: str) -> None:
    (tmp_path / "die-b0").write_text(last)
    it = start("both")
    assert it.ends() == 1
    assert mend in it.said.strip()


def test_never_ready(start: Start) -> None:
    it = start("both", rules=RULES + "start_s = 0.5\n")
    it.look()
    assert it.ends() == 1
    assert "b0 is not ready after 0.5 s, last seen" in it.said
    assert "raise supervisor.start_s" in it.said


def test_a_port_is_taken(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        it = start("both", more=f"events_port = {port}")
        assert it.ends() == 1
    assert f"port {port} on 127.0.0.1: Address already in use" in it.said
    assert "engines.b0.events_port: choose another in the fleet file" in it.said
    assert not it.starts("b0")


def test_a_changed_file_is_followed_and_touches_nothing_else(start: Start) -> None:
    it = start("prefill", "decode", "decode")
    it.serving()
    roles = {"p0": "prefill", "d1": "decode", "d3": "decode"}
    it.go("d3")
    it.write(roles, d1='args = ["--seed", "7"]')
    until(lambda: set(it.status()) == {"p0", "d1", "d3"}, START_S)
    until(lambda: {e["phase"] for e in it.status().values()} == {"ready"}, START_S)
    assert [len(it.starts(name)) for name in ("p0", "d1", "d2", "d3")] == [1, 2, 1, 1]
    assert it.starts("d1")[1]["argv"][-2:] == ["--seed", "7"]
    it.file.write_text("nonsense = [")
    it.shows("is not followed")
    assert {e["phase"] for e in it.status().values()} == {"ready"}
    assert it.asked_to_end() == 0


def test_a_change_that_does_not_start_is_taken_back(start: Start) -> None:
    it = start("prefill", "decode")
    it.serving()
    it.write({"p0": "prefill", "d1": "decode"}, p0='args = ["--refuse"]', d1='args = ["--seed", "1"]')
    it.shows("is not followed: p0 ended with status 7: vLLM does not know --refuse")
    assert "p0 runs as before, and what comes after it was left alone" in it.said
    assert {e["phase"] for e in it.status().values()} == {"ready"}
    assert [len(it.starts(name)) for name in ("p0", "d1")] == [3, 1]
    assert "--refuse" not in it.starts("p0")[-1]["argv"]
    assert it.asked_to_end() == 0
