"""SIGHUP has a gateway read its files again; the end of the terminal that it was started in ends it."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from gateway import hangup
from gateway.hangup import Hangup
from tests.gateway.conftest import until
from tests.ports import fresh_port


@contextmanager
def in_a_terminal(log: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A gateway that leads the session of a terminal of its own, and that terminal's other side."""
    ours, theirs = pty.openpty()

    def take() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    argv = [sys.executable, "-m", "gateway.cli", "serve", "--both", "http://127.0.0.1:1", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(argv, stdin=theirs, stdout=file, stderr=file, pass_fds=(theirs,), preexec_fn=take)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()


async def is_served(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(40), httpx.AsyncClient(trust_env=False) as http:
        while True:
            assert process.poll() is None
            with suppress(httpx.HTTPError):
                await http.get(f"http://127.0.0.1:{port}/livez")
                return
            await asyncio.sleep(0.02)


async def test_a_gateway_ends_in_order_with_its_terminal(tmp_path: Path) -> None:
    port, log = fresh_port(), tmp_path / "log"
    with in_a_terminal(log, port) as (process, terminal):
        await is_served(port, process)
        process.send_signal(signal.SIGHUP)
        await until(lambda: "reload" in log.read_text(), 20)
        os.close(terminal)
        assert await asyncio.to_thread(process.wait, 40) == 0, log.read_text()
        assert "Application shutdown complete" in log.read_text()


@pytest.mark.parametrize("nohup", [True, False])
async def test_a_terminal_may_leave_without_us(monkeypatch: pytest.MonkeyPatch, nohup: bool) -> None:
    """Under nohup, or long before: in the background of a shell that has ended. Later signals are an operator's."""
    monkeypatch.setattr(hangup, "LOOK_S", 0.01)
    monkeypatch.setattr(hangup, "TOGETHER_S", 0.02)
    here = True
    monkeypatch.setattr(hangup, "has_terminal", lambda: here)
    ended: list[int] = []
    read: list[float] = []
    before = {one: signal.getsignal(one) for one in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, lambda name, _: ended.append(name))
    if nohup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        heard = Hangup(lambda: read.append(time.monotonic()))
        heard.listen(asyncio.get_running_loop())
        here = False
        if not nohup:
            await until(lambda: heard.gone_s is not None and time.monotonic() > heard.gone_s + hangup.TOGETHER_S, 5)
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: bool(read) and time.monotonic() > read[0] + 3 * hangup.LOOK_S, 5)
        assert not ended
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        for name, handler in before.items():
            signal.signal(name, handler)
