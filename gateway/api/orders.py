"""An operator's orders, the same for all workers: kept in a file that they share, or in this process alone."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.fleet.roster import Orders


class OrderBook:
    """`path` is where workers share them; who is started later reads them there."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._own = Orders()

    def read(self) -> Orders:
        """The orders as they are now."""
        if self._path is None:
            return self._own
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Orders)
        except FileNotFoundError:
            return Orders()

    @contextmanager
    def change(self) -> Iterator[Orders]:
        """Change them: what is done to them in the `with` block is kept, unless it raises."""
        if self._path is None:
            orders = msgspec.json.decode(msgspec.json.encode(self._own), type=Orders)
            yield orders
            self._own = orders
            return
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            orders = self.read()
            yield orders
            fresh = self._path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(orders))
            fresh.replace(self._path)
