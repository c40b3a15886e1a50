#!/usr/bin/env python3
"""start FLEET COMMAND ...: says to the other containers which engines there are, then runs the command in its place.

Writes the fleet file, and Prometheus' targets from it, to the folder that gateway and Prometheus read.
"""

import json
import os
import sys
import tomllib
from pathlib import Path

TOLD = Path("/run/baton")


def targets(labels: dict[str, dict[str, str]]) -> str:
    """Addresses and their labels as Prometheus reads them from a file."""
    return json.dumps([{"targets": [address], "labels": its} for address, its in labels.items()])


def main(fleet: str, *command: str) -> None:
    text = Path(fleet).read_text()
    engines = [engine for engine in tomllib.loads(text)["engines"] if "port" in engine]
    named = {f"127.0.0.1:{engine['port']}": {"engine": engine["name"], "role": engine["role"]} for engine in engines}
    gateway: dict[str, dict[str, str]] = {f"127.0.0.1:{os.environ.get('BATON_PORT') or 8000}": {}}
    files = {"engines.json": targets(named), "gateway.json": targets(gateway), "fleet.toml": text}
    for name, content in files.items():
        new = TOLD / f"{name}.new"
        new.write_text(content)
        new.replace(TOLD / name)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
