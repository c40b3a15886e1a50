"""How the GPUs of this machine hang together, as `nvidia-smi topo -m` tells: NVLink, NUMA nodes, nearest processors."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NEARNESS = {"NV": 0, "PIX": 1, "PXB": 2, "PHB": 3, "NODE": 4, "SYS": 5}
"""How far two devices are from each other, by what lies between them; NVLink's number of lanes comes behind."""

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """What is near a GPU."""

    cpus: str = ""
    """Its processors, as `0-31,64-95`; empty if unknown."""
    numa: int | None = None
    nics: tuple[str, ...] = ()
    """Network devices on the same PCIe switch, for RDMA."""


@dataclass(frozen=True, slots=True)
class Topology:
    """GPUs by index, and how near two of them are: 0 for NVLink, more for every kind of bridge between them."""

    gpus: dict[int, Gpu] = field(default_factory=dict)
    far: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def here(cls) -> "Topology":
        """Of this machine; empty where nvidia-smi does not tell."""
        try:
            told = subprocess.run(
                ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError):
            return cls()
        return parse(told.stdout)

    def cpus(self, gpus: Iterable[int]) -> str:
        """Processors near any of these GPUs; empty if unknown for one of them."""
        lists = [self.gpus[gpu].cpus if gpu in self.gpus else "" for gpu in gpus]
        return ",".join(dict.fromkeys(lists)) if lists and all(lists) else ""

    def distance(self, a: int, b: int) -> int:
        """0 for NVLink, up to 5 for different sockets; the same if unknown."""
        return self.far.get((a, b), _NEARNESS["SYS"])

    def groups(self, gpus: Sequence[int], size: int) -> list[list[int]]:
        """Divide GPUs into groups of `size` whose members are near each other; what is left over is left out.

        Each group starts at the lowest free GPU and takes the nearest ones: first NVLink, then the same NUMA node.
        """
        free = list(gpus)
        groups: list[list[int]] = []
        while len(free) >= size:
            first = free[0]
            near = sorted(free[1:], key=lambda gpu: (self.distance(first, gpu), self._numa(gpu) != self._numa(first)))
            group = sorted([first, *near[: size - 1]], key=list(gpus).index)
            groups.append(group)
            free = [gpu for gpu in free if gpu not in group]
        return groups

    def _numa(self, gpu: int) -> int | None:
        return self.gpus[gpu].numa if gpu in self.gpus else None


def parse(told: str) -> Topology:
    """Read the matrix. Columns are separated by tabs; whatever is not understood is left unknown."""
    lines = [line for line in _ANSI.sub("", told).splitlines() if line.strip()]
    head = next((line for line in lines if "GPU0" in line and not line.startswith("GPU")), "")
    columns = [name.strip() for name in head.split("\t")]
    legend = dict(re.findall(r"^\s*(NIC\d+):\s*(\S+)", told, re.MULTILINE))
    gpus: dict[int, Gpu] = {}
    far: dict[tuple[int, int], int] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        if (row := re.fullmatch(r"GPU(\d+)", cells[0])) is None:
            continue
        gpu, named = int(row[1]), dict(zip(columns, cells, strict=False))
        nics = []
        for name, cell in named.items():
            if name.startswith("GPU") and "Affinity" not in name and "NUMA" not in name and cell != "X":
                far[gpu, int(name[3:])] = _far(cell)
            elif name.startswith("NIC") and cell in ("PIX", "PXB"):
                nics.append(legend.get(name, name))
        cpus, numa = named.get("CPU Affinity", ""), named.get("NUMA Affinity", "")
        gpus[gpu] = Gpu(
            cpus if re.fullmatch(r"[\d,-]+", cpus) else "", int(numa) if numa.isdigit() else None, tuple(nics)
        )
    return Topology(gpus, far)


def _far(cell: str) -> int:
    return _NEARNESS["NV"] if cell.startswith("NV") else _NEARNESS.get(cell, _NEARNESS["SYS"])
