"""SIGHUP says one of two things: "read your files again", or "the terminal that you were started in is gone".

The second ends us in order, as it ends other programs: a gateway that nobody sees any more would keep its port. Who
means it to stay says so with `nohup` or `setsid`, or leaves it in the background of a shell that does not tell it.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable

LOOK_S = 1.0
"""Between two looks at the terminal, and from the signal to the verdict."""
TOGETHER_S = 3.0
"""A terminal that went so long before the signal has nothing to do with it."""


class Hangup:
    """Hears SIGHUP: calls `reload` at each, and raises SIGTERM if the terminal went with it."""

    def __init__(self, reload: Callable[[], object]) -> None:
        self._reload = reload
        self.gone_s: float | None = None
        """When the terminal was seen to be gone (monotonic)."""

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, in the main thread's loop."""
        self._loop = loop
        told = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # nohup
        loop.add_signal_handler(signal.SIGHUP, self._told)
        self._here = told and has_terminal()
        if self._here:
            loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        if self.gone_s is None:
            if has_terminal():
                self._loop.call_later(LOOK_S, self._look)
            else:
                self.gone_s = time.monotonic()

    def _told(self) -> None:
        self._reload()
        if self._here:
            self._loop.call_later(LOOK_S, self._judge, time.monotonic())

    def _judge(self, told_s: float) -> None:
        if self.gone_s is None and not has_terminal():
            self.gone_s = time.monotonic()
        if self._here and self.gone_s is not None and told_s - self.gone_s < TOGETHER_S:
            self._here = False
            signal.raise_signal(signal.SIGTERM)


def has_terminal() -> bool:
    """Whether our session has a terminal (still)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
