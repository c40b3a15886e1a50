"""Ports for what a test starts, given out once on this machine: several tests run at a time."""

import fcntl
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FIRST, _LAST = 10_000, 32_000
"""Below those that a socket gets which asks for any."""


def fresh_ports(row: int = 1) -> Iterator[int]:
    """Ports that nobody listens on, and that no other test gets until all have had their turn.

    With `row`, each is the first of so many in a row.
    """
    counter = Path(tempfile.gettempdir()) / "baton-test-ports"
    while True:
        with counter.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            first = int(file.read() or _FIRST)
            if first + row > _LAST:
                first = _FIRST
            file.truncate(0)
            file.write(str(first + row))
        if all(map(_free, range(first, first + row))):
            yield first


def fresh_port(row: int = 1) -> int:
    """One of them."""
    return next(fresh_ports(row))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
