"""`baton load relay`: what relaying costs. CPU of the gateway per request and event, by the kernel's own account."""

import asyncio
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from engines.guard import descendants
from engines.layout import free_ports
from engines.process import GUARD
from load.blaster import blast
from load.standin import EVENTS

OURS = f"{sys.executable} -m gateway.cli serve --port {{port}} --log-level warning"
OURS += " --prefill {p0} --prefill {p1} --decode {d0} --decode {d1}"
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load."""

    name: str
    size: int
    stream: bool
    connections: int
    interval_s: float = 0.0


WORKS = {
    work.name: work
    for work in (
        Work("request-2k", 2 << 10, False, 16),
        Work("request-64k", 64 << 10, False, 16),
        Work("stream-paced", 2 << 10, True, 64, 0.01),
        Work("stream-firehose", 2 << 10, True, 32),
    )
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: microseconds of CPU per request (or per event of a stream), requests per second, ms, MB."""

    cpu_us: float
    per: str
    rps: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    rss_mb: float
    completed: int
    bad: int


def tree(guard: int) -> list[int]:
    """What runs under a guard, without the two processes of the guard itself."""
    return descendants(guard)[1:]


def cpu_s(guard: int) -> float:
    """CPU seconds that a guarded process tree has used, by its threads' schedstat."""
    total = 0
    for process in tree(guard):
        for stat in Path(f"/proc/{process}/task").glob("*/schedstat"):
            total += int(stat.read_text().split()[0])
    return total / 1e9


def rss_mb(guard: int) -> float:
    """Resident memory of a guarded process tree."""
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in tree(guard))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def running(command: Sequence[str], core: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process on a core of its own, under a guard, so that nothing stays whatever happens to us; yields the guard."""
    guard = [sys.executable, "-SE", GUARD, "--parent", str(os.getpid()), "--"]
    pin = ["taskset", "-c", str(core)] if core is not None else []
    argv = [*guard, *pin, *command]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def cores() -> tuple[int | None, int | None]:
    """One core for the gateway and one for the rest; None where there is only one."""
    mine = sorted(os.sched_getaffinity(0))
    return (mine[1], mine[0]) if len(mine) > 1 else (None, None)


def measure(command: str, work: Work, seconds: float) -> Figures:
    """One run of one gateway. Raises `RuntimeError` if it does not answer."""
    theirs, ours = cores()
    ports = free_ports(19100)
    engines = [next(ports) for _ in range(4)]
    port = next(ports)
    names = dict(zip(("p0", "p1", "d0", "d1"), (f"http://127.0.0.1:{p}" for p in engines), strict=True))
    argv = shlex.split(command.format(port=port, **names))
    standin = [sys.executable, "-m", "load.standin", str(work.interval_s), *map(str, engines)]
    if ours is not None:
        os.sched_setaffinity(0, {ours})
    try:
        with running(standin, ours), running(argv, theirs) as gateway:
            _answers(gateway, argv, port)
            asyncio.run(blast(port, work.size, work.stream, work.connections, 0.2))  # warm-up
            before = cpu_s(gateway.pid)
            start = time.perf_counter()
            counts = asyncio.run(blast(port, work.size, work.stream, work.connections, seconds))
            took = time.perf_counter() - start
            used, memory = cpu_s(gateway.pid) - before, rss_mb(gateway.pid)
    finally:
        if theirs is not None and ours is not None:
            os.sched_setaffinity(0, {theirs, ours})
    units = counts.completed * (EVENTS if work.stream else 1)
    quantiles = statistics.quantiles(counts.ttft_s, n=100) if len(counts.ttft_s) > 1 else [0.0] * 99
    return Figures(
        cpu_us=used * 1e6 / units if units else 0.0,
        per="event" if work.stream else "request",
        rps=counts.completed / took,
        ttft_p50_ms=quantiles[49] * 1e3,
        ttft_p99_ms=quantiles[98] * 1e3,
        rss_mb=memory,
        completed=counts.completed,
        bad=counts.bad,
    )


def _answers(gateway: subprocess.Popen[bytes], command: Sequence[str], port: int) -> None:
    """Wait until the gateway serves a request."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and gateway.poll() is None:
        try:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            if httpx.post(url, json=body, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{shlex.join(command)} did not answer within {START_S:g} s")
