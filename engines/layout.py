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


TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
"""For models whose tool calls look as Qwen's do; without it vLLM refuses `tools` in requests."""

EXACT = ("--dtype", "float32")
"""With bfloat16 the likeliest two tokens are often within rounding, and equal prompts then differ by batch shape."""


def gpus() -> list[int]:
    """Indices of the NVIDIA GPUs that this process may use; empty without a driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return visible(listed.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(listed: str, wanted: str | None) -> list[int]:
    """Indices that `CUDA_VISIBLE_DEVICES` leaves of nvidia-smi's `index, uuid` lines, in its order.

    As the driver reads it: numbers or the beginnings of UUIDs, all before the first that matches no GPU.
    """
    rows = [tuple(part.strip() for part in line.split(",")) for line in listed.splitlines() if "," in line]
    if wanted is None:
        return [int(index) for index, _ in rows]
    found: list[int] = []
    for name in (part.strip() for part in wanted.split(",")):
        match = [int(index) for index, uuid in rows if name and (index == name or uuid.startswith(name))]
        if not match:
            break
        found += match[:1]
    return found


def free_ports(first: int = 8101) -> Iterator[int]:
    """Ports that nobody listens on now, from `first` upwards."""
    for port in range(first, 65536):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        yield port


def on_cpu(model: Path, ports: Iterator[int]) -> Fleet:
    """One prefill and one decode engine on the CPU."""
    engines = [_engine(name, role, ports, device="cpu") for name, role in (("p0", "prefill"), ("d0", "decode"))]
    settings = {"path": str(model), "block_size": 32, "max_model_len": 4096, "lease_s": CPU_LEASE_S}
    return Fleet.parse({"models": {model.name: {**settings, "args": [*EXACT, *TOOLS]}}, "engines": engines}, "layout")


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
    args = TOOLS if model == GPU_MODEL else ()
    return Fleet.parse({"models": {model: {"path": model, "args": list(args)}}, "engines": engines}, "layout")


def _engine(name: str, role: str, ports: Iterator[int], **more: Any) -> dict[str, Any]:
    """One engine with four ports of its own."""
    keys = ("port", "nixl_port", "events_port", "replay_port")
    return {"name": name, "role": role, **dict(zip(keys, ports, strict=False)), **more}
