"""`docker compose up`: eight GPUs, or a word about what to set. The wiring is proven here, not the GPUs."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.fleet import Fleet
from tests.containers.baton import chat, report
from tests.containers.engine import REPO, Engine
from tests.namespace import Namespace

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]

OVERLAY = ("-f", "compose.yaml", "-f", "tests/containers/gpus.yaml")
HOOK = "nvidia-container-runtime-hook"
SMI = """#!/usr/bin/env python3
import os
for gpu in range(len(os.environ["NVIDIA_VISIBLE_DEVICES"].split(","))):
    print(f"{gpu}, GPU-{gpu}")
"""


def executable(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def node(folder: Path, gpus: int) -> dict[str, str]:
    """What tells of a node's GPUs, as files; and the environment for the overlay that shows them."""
    for gpu in range(gpus):
        (folder / f"proc/driver/nvidia/gpus/0000:0{gpu}:00.0").mkdir(parents=True)
    executable(folder / "nvidia-smi", SMI)
    return {"NODE": str(folder)}


@pytest.fixture(scope="module")
def hooked(engine: Engine) -> Iterator[Engine]:
    """dockerd takes a machine for one with GPUs if NVIDIA's hook is there when it starts."""
    engine.stop()
    executable(engine.hooks / HOOK, "#!/bin/sh\nexec cat\n")
    engine.start(alone=True)
    yield engine
    engine.stop()
    (engine.hooks / HOOK).unlink()
    engine.start(alone=True)


@pytest.mark.parametrize("gpus", [8, 1])
def test_each_engine_sees_its_own(hooked: Engine, inside: Namespace, tmp_path: Path, gpus: int) -> None:
    tmp_path.chmod(0o755)
    env = {**node(tmp_path, gpus), **({} if gpus == 8 else {"BATON_GPUS": str(gpus)})}
    fleet = Fleet.load(REPO / f"docker/fleets/{gpus}.toml")
    with hooked.compose_up("gpu", *OVERLAY, env=env):
        every = ",".join(map(str, range(gpus)))
        for pid, line in hooked.processes("baton-engines-1").items():
            for engine in fleet.engines:
                if f"--port {engine.port}" in line and "guard.py" not in line:
                    seen = environment(pid)
                    assert seen["NVIDIA_VISIBLE_DEVICES"] == every
                    assert seen["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, engine.gpus))
        assert {engine["state"] for engine in inside.run(report)["engines"]} == {"up"}
        assert inside.run(lambda: chat("Hello there", 8))[1] == "length"


def environment(pid: int) -> dict[str, str]:
    """What a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def test_a_node_with_fewer_gpus_is_told_what_to_set(hooked: Engine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    said = up_fails(hooked, node(tmp_path, 4))
    assert "this node has 4 GPUs, the fleet wants 8: set BATON_GPUS=4" in said


def test_a_node_without_gpus_is_told_of_the_other_profiles(engine: Engine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    said = up_fails(engine, node(tmp_path, 0))
    assert "this node has no NVIDIA GPU" in said and "--profile cpu" in said


def up_fails(engine: Engine, env: dict[str, str]) -> str:
    """What `docker compose up` prints where it must not come up."""
    try:
        said = engine.compose(*OVERLAY, "up", "--no-build", "--pull", "never", env=env, check=False)
        assert not engine.docker("ps", "--quiet", "--filter", "name=baton-(engines|gateway)")
        return said
    finally:
        engine.compose(*OVERLAY, "down", "--volumes", env=env, check=False)


@pytest.mark.parametrize("profile", ["gpu", "rdma", "cpu", "sim", "observability"])
def test_every_profile_is_in_order(engine: Engine, profile: str) -> None:
    engine.compose("--profile", profile, "config", "--quiet")
