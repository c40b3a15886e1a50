#!/usr/bin/env -S python3 -SE
"""healthy WHAT ...: ends with 0 if every URL answers 200, and so does /health of every engine that a fleet file starts.

Else it says which does not. Standard library only: it runs often.
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

TIMEOUT_S = 4.0


def urls(what: str) -> Iterator[str]:
    """The URLs that an argument stands for. Raises OSError."""
    if not what.endswith(".toml"):
        yield what
        return
    for engine in tomllib.loads(Path(what).read_text())["engines"]:
        if "port" in engine:
            yield f"http://127.0.0.1:{engine['port']}/health"


def wrong(what: str) -> Iterator[str]:
    """What is wrong there."""
    url = what
    try:
        for url in urls(what):
            build_opener(ProxyHandler({})).open(url, timeout=TIMEOUT_S).close()
    except OSError as error:  # an HTTP status is one too
        yield f"{url}: {error}"


if __name__ == "__main__":
    sys.exit("; ".join(line for what in sys.argv[1:] for line in wrong(what)) or 0)
