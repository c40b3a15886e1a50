"""Code of a test that runs in another network namespace."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


class Namespace:
    """A network namespace by its file, `/proc/PID/ns/net` or `/run/netns/NAME`; sockets are made in it by `run`."""

    def __init__(self, file: str | Path) -> None:
        self._pool = ThreadPoolExecutor(1, initializer=_enter, initargs=(str(file),))

    def run(self, what: Callable[[], T]) -> T:
        """What `what` returns, called there."""
        return self._pool.submit(what).result()

    def submit(self, what: Callable[[], T]) -> Future[T]:
        """Call `what` there, one after another."""
        return self._pool.submit(what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _enter(file: str) -> None:
    """setns(2) moves one thread, not its process. Raises OSError."""
    handle = os.open(file, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {file}")
    finally:
        os.close(handle)
