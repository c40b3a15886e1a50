"""One process that we started, under its guard, with what it prints in a log.

The kernel tells a guard when the *thread* that started it ends (PR_SET_PDEATHSIG), so start
processes from the main one.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.log import Log

GUARD = str(Path(__file__).with_name("guard.py"))

LEFT_S = 15.0
"""A guard that is killed leaves a second one behind, which needs this long at most to end the tree."""

_READ_BYTES = 64 << 10


class Process:
    """A command and everything below it. `name` is how people call it; without `log` it writes where we write.

    `cpus`: where it may run (`0-31,64-95`); empty: anywhere.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Log | None,
        grace_s: float = 10.0,
        cpus: str = "",
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._env = env
        self._guard_options = ["--grace", str(grace_s), *(("--cpus", cpus) if cpus else ())]
        self._guard: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it."""
        out = asyncio.subprocess.PIPE if self.log is not None else None
        self._guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-SE", GUARD, "--parent", str(os.getpid()), *self._guard_options, "--"),
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT if out is not None else None,
            env={**os.environ, **self._env},
            start_new_session=True,  # Ctrl-C in the terminal is ours to pass on
        )
        if self.log is not None:
            self.log.begin(f"{self.name}: process {self._guard.pid}: {' '.join(self._command)}")
            self._reading = asyncio.create_task(self._read(self.log, self._guard.stdout))

    @staticmethod
    async def _read(log: Log, out: asyncio.StreamReader | None) -> None:
        assert out is not None
        while data := await out.read(_READ_BYTES):
            log.feed(data)
        log.end()

    @property
    def pid(self) -> int | None:
        """Of the guard."""
        return self._guard.pid if self._guard else None

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.returncode is None

    def stop(self) -> None:
        """Ask it to end; killed after the grace."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything below it now."""
        self._send(signal.SIGQUIT)

    def _send(self, what: signal.Signals) -> None:
        if self._guard is not None and self._guard.returncode is None:
            self._guard.send_signal(what)

    async def wait(self) -> int:
        """Its exit status, once it and everything below it has ended."""
        if self._guard is None:
            return 0
        status = await self._guard.wait()
        if self._reading is not None:  # whatever lives below holds the other end
            await asyncio.wait((self._reading,), timeout=LEFT_S)
        return status

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return self.log.tail(lines) if self.log is not None else ""
