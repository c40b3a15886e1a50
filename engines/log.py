"""What a process prints: into a file that is turned over, its end into memory, and line by line to who listens."""

import logging
import re
from collections import deque
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path

from engines.stages import Stages

LINE_BYTES = 16 << 10
"""Longer lines are cut."""

TAIL_LINES = 400
_ENDS = re.compile(rb"[\r\n]+")


class Log:
    """The output of one process, and of those that take its place. Bounded: on disk, in memory, in a line's length."""

    def __init__(
        self, path: Path, most_bytes: int = 20 << 20, files: int = 3, listener: Callable[[str], None] | None = None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.stages = Stages()
        self._file = RotatingFileHandler(path, maxBytes=most_bytes, backupCount=files, delay=True, errors="replace")
        self._listener = listener
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._part = b""

    def begin(self, title: str) -> None:
        """A new process writes here."""
        self._lines.clear()
        self.stages = Stages()
        self._part = b""
        self._write(f"--- {title}")

    def feed(self, data: bytes) -> None:
        """Take what was read; an unfinished line waits for its end."""
        *lines, self._part = _ENDS.split(self._part + data)
        if len(self._part) > LINE_BYTES:
            lines.append(self._part)
            self._part = b""
        for line in lines:
            if line:
                self._take(line[:LINE_BYTES].decode(errors="replace"))

    def end(self) -> None:
        """The process has ended; its last line may have no end."""
        if self._part:
            self._take(self._part.decode(errors="replace"))
            self._part = b""

    def tail(self, lines: int = 20) -> str:
        """The end of what the process that writes now has printed."""
        return "\n".join(list(self._lines)[-lines:])

    def close(self) -> None:
        self._file.close()

    def _take(self, line: str) -> None:
        self._lines.append(line)
        self.stages.read(line)
        self._write(line)
        if self._listener is not None:
            self._listener(line)

    def _write(self, line: str) -> None:
        self._file.handle(logging.makeLogRecord({"msg": line}))
