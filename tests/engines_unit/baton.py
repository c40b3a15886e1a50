"""`baton up` or `baton demo` as a process of its own, and every process that it starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from engines.guard import descendants
from tests.engines_unit.until import alive, until
from tests.ports import fresh_ports

START_S = 30.0
"""Generous: a busy machine takes long to import Python modules."""


class Baton:
    """Started in a session of its own, as from a terminal; its output and state are in `folder`."""

    through: Sequence[str] = ()
    """The command that starts it in its turn."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.ports = fresh_ports()
        self.port = next(self.ports)
        self.output = folder / "output"
        self.seen: set[int] = set()
        """Ids of all its processes, as far as `look` saw them."""
        self.prepare()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*self.through, sys.executable, "-m", "gateway.cli", *self.arguments(*arguments)],
                env={**os.environ, "BATON_STATE_DIR": str(folder / "state")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def prepare(self) -> None:
        """What must be there first."""

    def arguments(self, *given: str) -> list[str]:
        """Its command line."""
        return [*given, "--port", str(self.port)]

    @property
    def said(self) -> str:
        return self.output.read_text()

    def shows(self, text: str, within_s: float = START_S) -> None:
        """Wait until it has printed this; fails if it ends without."""
        until(lambda: text in self.said or self.process.poll() is not None, within_s)
        assert text in self.said, self.said

    def look(self) -> None:
        """Remember the ids of all its processes."""
        self.seen |= {self.process.pid, *descendants(self.process.pid)}

    def ends(self, within_s: float = START_S) -> int:
        """Wait until it and all that was seen is gone; its exit status."""
        status = self.process.wait(within_s)
        until(lambda: not [pid for pid in self.seen if alive(pid)], within_s)
        return status

    def answers(self, path: str) -> bool:
        """True if the gateway answers 200 to a GET."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def clear(self) -> None:
        """Leave nothing behind, whatever the test did."""
        self.look()
        self.process.kill()
        self.process.wait()
        for pid in self.seen:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
