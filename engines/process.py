"""One process that we started, under its guard, with its log in a file.

The kernel tells a guard when the *thread* that started it ends (PR_SET_PDEATHSIG), so start
processes from the main one.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

GUARD = str(Path(__file__).with_name("guard.py"))


class Process:
    """A command and everything below it. `name` is how people call it; without `log` it writes where we write."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path | None, grace_s: float = 10.0
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._env = env
        self._grace_s = grace_s
        self._guard: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; its output goes to `log`, which is begun anew."""
        guard = [sys.executable, "-SE", GUARD, "--parent", str(os.getpid()), "--grace", str(self._grace_s), "--"]
        with ExitStack() as files:
            out = None
            if self.log is not None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                out = files.enter_context(self.log.open("wb"))
            self._guard = await asyncio.create_subprocess_exec(
                *guard,
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self._env},
                start_new_session=True,  # Ctrl-C in the terminal is ours to pass on
            )

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
        return await self._guard.wait() if self._guard else 0

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        if self.log is None:
            return ""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""
