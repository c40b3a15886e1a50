#!/usr/bin/env -S python3 -SE
"""preflight: ends with 0 if this node has the GPUs that the fleet wants, else says what to set.

Looks where a container without GPUs sees them: at the PCI bus, and at what NVIDIA's driver tells under /proc.
"""

import os
import sys
from pathlib import Path

NVIDIA = "0x10de"
DISPLAY = "0x03"
"""PCI's class of display controllers: a GPU's other functions (audio, USB) and NVSwitches are of other ones."""


def on_the_bus(devices: Path) -> int:
    """NVIDIA GPUs on the PCI bus, with a driver or without."""
    return sum(
        (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith(DISPLAY)
        for device in devices.iterdir()
    )


def wrong(wanted: int, root: Path) -> str:
    """What keeps `wanted` GPUs from serving, with the mend; nothing if they are there."""
    driver, bus = root / "proc/driver/nvidia/gpus", root / "sys/bus/pci/devices"
    ready = len(list(driver.iterdir())) if driver.is_dir() else 0
    if ready >= wanted:
        return ""
    if ready:
        fleets = max(size for size in (1, 2, 4, 8) if size <= ready)
        return (
            f"this node has {ready} GPU{'s' if ready > 1 else ''}, the fleet wants {wanted}: set BATON_GPUS={fleets}, "
            f"or BATON_GPUS={ready} and BATON_FLEET to a fleet file of yours"
        )
    if bus.is_dir() and (there := on_the_bus(bus)):
        return f"this node has {there} NVIDIA GPUs and no driver for them: install NVIDIA's driver, then run nvidia-smi"
    return (
        "this node has no NVIDIA GPU: `docker compose --profile cpu up` runs real engines on the CPU, "
        "`docker compose --profile sim up` engine doubles"
    )


if __name__ == "__main__":
    found = wrong(int(os.environ.get("BATON_GPUS") or 8), Path(*sys.argv[1:2] or ["/"]))
    sys.exit(f"baton: {found}" if found else 0)
