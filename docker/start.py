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


def main(fleet: str, *command: str) -> None:
    text = Path(fleet).read_text()
    engines = [engine for engine in tomllib.loads(text)["engines"] if "port" in engine]
    targets = [
        {"targets": [f"127.0.0.1:{engine['port']}"], "labels": {"engine": engine["name"], "role": engine["role"]}}
        for engine in engines
    ]
    for name, content in (("engines.json", json.dumps(targets)), ("fleet.toml", text)):
        new = TOLD / f"{name}.new"
        new.write_text(content)
        new.replace(TOLD / name)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
