"""Runs engines in the foreground: the first signal ends them in order, the second at once.

Whoever started us takes them along: when our parent dies they end in order, unless we lead a session of our own
(setsid) or do not hear of hang-ups (nohup).
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import typer
from rich.console import Console
from rich.logging import RichHandler

from engines.checks import CannotStart, alone
from engines.fleet import FleetError
from engines.init import stay_as_init
from engines.supervisor import Failed, Supervisor

PARENT_S = 0.5
"""Between two looks at whether our parent lives."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Session(Protocol):
    """One run from start to end."""

    supervisor: Supervisor
    ready: bool

    async def main(self) -> int:
        """Start, and wait; the exit status. Raises `CannotStart`, `FleetError`, `Failed`."""
        ...


def run(session: Session, state: Path, console: Console) -> int:
    """Run a session that keeps its files in `state`, alone there. Returns the exit status.

    As process 1 of a container it runs below a process that passes signals on and reaps orphans.
    """
    stay_as_init()
    _log_to(console)
    try:
        with alone(state):
            return asyncio.run(_under_signals(session))
    except CannotStart as error:
        return _says(error)


def _log_to(console: Console) -> None:
    handler: logging.Handler
    if console.is_terminal:  # above the table that moves
        handler = RichHandler(console=console, show_path=False, show_level=False, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _says(error: Exception) -> int:
    typer.secho(f"baton: {error}", fg="red", err=True)
    return 1


async def _under_signals(session: Session) -> int:
    loop = asyncio.get_running_loop()
    work = loop.create_task(session.main())
    asked = 0

    def ask(why: str = "") -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            typer.echo(f"\nbaton: {why}ending everything; Ctrl-C again ends it at once", err=True)
            work.cancel()
        else:
            session.supervisor.kill()

    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def told(*_: object) -> None:
        _leave_those_gone(terminals)
        with suppress(RuntimeError):  # the loop has ended, we are about to
            loop.call_soon_threadsafe(ask)

    ward = loop.create_task(_outlive(os.getppid(), ask)) if _is_ward() else None

    # Not the loop's own handlers: those go with the loop, and a late Ctrl-C would then end us with a traceback.
    for name in ENDING:
        signal.signal(name, told)
    try:
        return await work
    except asyncio.CancelledError:
        return 0 if session.ready else 130
    except (FleetError, Failed) as error:
        return _says(error)
    finally:
        if ward is not None:
            ward.cancel()
        await session.supervisor.stop()
        for name in ENDING:
            signal.signal(name, signal.SIG_IGN)  # all has ended: a late one must not change our exit status


def _leave_those_gone(terminals: list[int]) -> None:
    """Writing to a terminal that was closed fails, whoever does it, and would keep us from ending in order."""
    for fd in terminals:
        if not os.isatty(fd):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)


def _is_ward() -> bool:
    """Whether we are to end with our parent."""
    return os.getsid(0) != os.getpid() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


async def _outlive(parent: int, ask: Callable[[str], None]) -> None:
    """Return when our parent is gone, and say so. (The kernel's signal would come when the parent's thread ends.)"""
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(PARENT_S)
    ask("what started this is gone (nohup or setsid keeps it): ")
