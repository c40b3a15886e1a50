"""Engines are laid over the GPUs there are."""

import itertools
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from engines import layout
from engines.fleet import Fleet, FleetError, Role


def roles(fleet: Fleet) -> Counter[Role]:
    return Counter(engine.role for engine in fleet.engines)


def ports(fleet: Fleet) -> list[int]:
    return [port for engine in fleet.engines for _, port in engine.ports()]


@pytest.mark.parametrize(("count", "prefill", "decode"), [(2, 1, 1), (3, 1, 2), (4, 2, 2), (7, 3, 4), (8, 4, 4)])
def test_one_engine_per_gpu(count: int, prefill: int, decode: int) -> None:
    fleet = layout.on_gpus(range(count), "org/model", itertools.count(9000))
    assert roles(fleet) == {Role.PREFILL: prefill, Role.DECODE: decode}
    assert sorted(gpu for engine in fleet.engines for gpu in engine.gpus) == list(range(count))
    assert all(engine.device == "cuda" and engine.gpu_memory_utilization is None for engine in fleet.engines)
    assert len(set(ports(fleet))) == 4 * count
    assert fleet.models["org/model"].path == "org/model"


def test_two_engines_share_one_gpu() -> None:
    fleet = layout.on_gpus([3], layout.GPU_MODEL, itertools.count(9000))
    assert roles(fleet) == {Role.PREFILL: 1, Role.DECODE: 1}
    assert [engine.gpus for engine in fleet.engines] == [(3,), (3,)]
    assert sum(engine.gpu_memory_utilization or 1 for engine in fleet.engines) < 0.9


def test_no_gpu() -> None:
    with pytest.raises(FleetError, match="use the layout for CPUs"):
        layout.on_gpus([], "m", itertools.count(9000))


def test_on_cpu() -> None:
    fleet = layout.on_cpu(Path("/models/tiny"), itertools.count(9000))
    assert roles(fleet) == {Role.PREFILL: 1, Role.DECODE: 1}
    assert all(engine.device == "cpu" and not engine.gpus for engine in fleet.engines)
    model = fleet.models["tiny"]
    assert (model.path, model.block_size) == ("/models/tiny", 32)
    assert model.lease_s >= 120, "pulls on busy cores were seen to take longer than vLLM's default lease"
    assert len(set(ports(fleet))) == 8


def test_taken_ports_are_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert next(layout.free_ports(port)) > port


LISTED = "0, GPU-aa11\n1, GPU-bb22\n2, GPU-bb33\n"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("GPU-bb33, 0", [2, 0]),
        ("GPU-aa", [0]),
        ("0,7,1", [0]),
    ],
)
def test_visible_gpus(wanted: str | None, found: list[int]) -> None:
    assert layout.visible(LISTED, wanted) == found


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert layout.gpus() == []


def test_driver_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert subprocess.run(["nvidia-smi"], check=False, capture_output=True).returncode == 6
    assert layout.gpus() == []
