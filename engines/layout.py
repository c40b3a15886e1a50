"""Lays a fleet over the GPUs of this machine; without any, two engines on its CPU."""

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.fleet import Fleet, FleetError

GPU_MODEL = "Qwen/Qwen3-0.6B"
"""Small enough for any GPU, public, and loads in under a minute."""

CPU_LEASE_S = 300.0
"""A pull between two engines on a busy CPU was seen to take 31 s, past vLLM's default lease."""

SHARED_GPU = 0.42
"""Share of the memory that each of two engines on one GPU takes."""


def gpus() -> list[int]:
    """Indices of the NVIDIA GPUs that this process may use; empty without a driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    found = [int(line) for line in listed.stdout.split()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    wanted = [part.strip() for part in visible.split(",")]
    return [index for index in found if str(index) in wanted]


def free_ports(first: int = 8101) -> Iterator[int]:
    """Ports that nobody listens on now, from `first` upwards."""
    for port in range(first, 65536):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        yield port


def on_cpu(model: Path, ports: Iterator[int]) -> Fleet:
    """One prefill and one decode engine on the CPU."""
    engines = [_engine(name, role, ports, device="cpu") for name, role in (("p0", "prefill"), ("d0", "decode"))]
    settings = {"path": str(model), "block_size": 32, "max_model_len": 2048, "lease_s": CPU_LEASE_S}
    return Fleet.parse({"models": {model.name: settings}, "engines": engines}, "layout")


def on_gpus(gpus: Sequence[int], model: str, ports: Iterator[int]) -> Fleet:
    """Half of the GPUs prefill, the rest decode, one engine each; two engines share a single GPU.

    Raises `FleetError` without a GPU.
    """
    if not gpus:
        raise FleetError("layout: no GPU: use the layout for CPUs")
    if len(gpus) == 1:
        shared = {"gpus": list(gpus), "gpu_memory_utilization": SHARED_GPU}
        engines = [_engine("p0", "prefill", ports, **shared), _engine("d0", "decode", ports, **shared)]
    else:
        half = len(gpus) // 2
        engines = [_engine(f"p{i}", "prefill", ports, gpus=[gpu]) for i, gpu in enumerate(gpus[:half])]
        engines += [_engine(f"d{i}", "decode", ports, gpus=[gpu]) for i, gpu in enumerate(gpus[half:])]
    return Fleet.parse({"models": {model: {"path": model}}, "engines": engines}, "layout")


def _engine(name: str, role: str, ports: Iterator[int], **more: Any) -> dict[str, Any]:
    """One engine with four ports of its own."""
    keys = ("port", "nixl_port", "events_port", "replay_port")
    return {"name": name, "role": role, **dict(zip(keys, ports, strict=False)), **more}
