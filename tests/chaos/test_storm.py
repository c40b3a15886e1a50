"""The storm itself, short; `test_long_storm.py` has the long one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.guard import descendants
from load.chaos.plan import Plan
from tests.chaos.outcome import outcome

SMALL = [sys.executable, "-m", "gateway.cli", "chaos", "--prefill", "1", "--decode", "1", "--gateways", "1"]


@pytest.mark.timeout(120)
async def test_a_short_storm_does_no_harm(tmp_path: Path) -> None:
    plan = Plan(seed=2, requests=360, every_s=0.5, prefill=2, decode=2)
    found = await outcome(plan, tmp_path)
    assert found["requests"] == 360
    assert not [found[never] for never in ("wrong", "lost", "doubled", "hung", "leaked") if found[never]], found
    assert len(found["blows"]) >= 4


@pytest.mark.timeout(120)
def test_ctrl_c_ends_everything_and_shows_what_there_is() -> None:
    argv = [
        sys.executable,
        "-m",
        "gateway.cli",
        "chaos",
        "--prefill",
        "1",
        "--decode",
        "1",
        "--gateways",
        "1",
        "--json",
    ]
    process = subprocess.Popen([*argv, "--scenario", "calm"], stdout=subprocess.PIPE, start_new_session=True)
    family: list[int] = []
    try:
        deadline = time.monotonic() + 60
        while len(family) < 4:
            assert time.monotonic() < deadline
            family = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert json.loads(told)["stopped"]
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


@pytest.mark.timeout(120)
def test_nothing_outlives_a_harness_that_is_killed() -> None:
    process = subprocess.Popen(SMALL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    family: list[int] = []
    while len(family) < 3:
        assert time.monotonic() < deadline
        family = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.01)
