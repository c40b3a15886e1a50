"""`nvidia-smi topo -m` is read: which GPUs are near each other, and near which processors and network devices."""

import stat
from pathlib import Path

import pytest

from engines.topology import Topology, parse


def table(*rows: str) -> str:
    """Rows as nvidia-smi prints them: cells between tabs, its header underlined by escape codes."""
    head, *rest = ["\t".join(row.split("|")) for row in rows]
    return "\n".join([f"\t\x1b[4m{head}\x1b[0m", *rest])


NVSWITCH = (
    table(
        "GPU0|GPU1|GPU2|GPU3|NIC0|NIC1|CPU Affinity|NUMA Affinity|GPU NUMA ID",
        "GPU0| X |NV18|NV18|NV18|PIX|SYS|0-47,96-143|0|N/A",
        "GPU1|NV18| X |NV18|NV18|NODE|SYS|0-47,96-143|0|N/A",
        "GPU2|NV18|NV18| X |NV18|SYS|PXB|48-95,144-191|1|N/A",
        "GPU3|NV18|NV18|NV18| X |SYS|NODE|48-95,144-191|1|N/A",
        "NIC0|PIX|NODE|SYS|SYS| X |SYS|||",
        "NIC1|SYS|SYS|PXB|NODE|SYS| X |||",
    )
    + "\n\nLegend:\n\n  X    = Self\n\nNIC Legend:\n\n  NIC0: mlx5_0\n  NIC1: mlx5_4\n"
)
PAIRS = table(
    "GPU0|GPU1|GPU2|GPU3|CPU Affinity|NUMA Affinity",
    "GPU0| X |SYS|NV4|NODE|0-15|0",
    "GPU1|SYS| X |SYS|NV4|16-31|1",
    "GPU2|NV4|SYS| X |SYS|0-15|0",
    "GPU3|NODE|NV4|SYS| X |16-31|1",
)
PCIE = table(
    "GPU0|GPU1|GPU2|GPU3|CPU Affinity|NUMA Affinity",
    "GPU0| X |SYS|PHB|SYS|0-15|0",
    "GPU1|SYS| X |SYS|PXB|16-31|1",
    "GPU2|PHB|SYS| X |SYS|0-15|0",
    "GPU3|SYS|PXB|SYS| X |16-31|1",
)
ALONE = table("GPU0|CPU Affinity|NUMA Affinity", "GPU0| X |N/A|N/A")


def test_what_is_near() -> None:
    told = parse(NVSWITCH)
    assert sorted(told.gpus) == [0, 1, 2, 3]
    assert (told.gpus[0].cpus, told.gpus[0].numa, told.gpus[0].nics) == ("0-47,96-143", 0, ("mlx5_0",))
    assert told.gpus[2].nics == ("mlx5_4",)
    assert told.gpus[3].nics == ()
    assert told.distance(0, 3) == 0
    assert told.cpus([0, 1]) == "0-47,96-143"
    assert told.cpus([1, 2]) == "0-47,96-143,48-95,144-191"


@pytest.mark.parametrize(
    ("told", "size", "groups"),
    [
        (NVSWITCH, 1, [[0], [1], [2], [3]]),
        (NVSWITCH, 2, [[0, 1], [2, 3]]),  # NVLink everywhere: the same socket decides
        (NVSWITCH, 4, [[0, 1, 2, 3]]),
        (PAIRS, 2, [[0, 2], [1, 3]]),  # NVLink in pairs
        (PCIE, 2, [[0, 2], [1, 3]]),  # none: PCIe bridges
        (NVSWITCH, 3, [[0, 1, 2]]),
    ],
)
def test_groups_for_tensor_parallelism(told: str, size: int, groups: list[list[int]]) -> None:
    assert parse(told).groups([0, 1, 2, 3], size) == groups


def test_one_gpu_and_nothing_known_of_it() -> None:
    told = parse(ALONE)
    assert sorted(told.gpus) == [0]
    assert told.cpus([0]) == ""
    assert told.groups([0], 1) == [[0]]


@pytest.mark.parametrize("told", ["", "No devices were found\n", "\t\t\n", "GPU0\tGPU1\n"])
def test_what_cannot_be_read_is_unknown(told: str) -> None:
    topology = parse(told)
    assert topology.cpus([0, 1]) == ""
    assert topology.groups([0, 1, 2], 2) == [[0, 1]]


def test_asks_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    (tmp_path / "told").write_text(PAIRS)
    tool.write_text(f'#!/bin/sh\n[ "$1 $2" = "topo -m" ] && cat {tmp_path}/told\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert Topology.here().gpus[1].numa == 1
    monkeypatch.setenv("PATH", "")
    assert Topology.here().gpus == {}
