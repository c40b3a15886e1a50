"""`baton load relay`: what relaying costs. CPU of the gateway per request and event, by the kernel's own account."""

import asyncio
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from engines.guard import descendants
from engines.layout import free_ports
from engines.process import GUARD
from engines.tiny_model import make_tiny_model
from gateway.index.embedded import Embedded
from gateway.prompt import same
from load.blaster import KEY, Counts, Texts, blast
from load.standin import EVENTS

SERVE = f"env BATON_CONNECTIONS_PER_ENGINE=16384 {sys.executable} -m gateway.cli serve --port {{port}}"
SERVE += " --log-level warning"
SERVE += " --prefill {p0} --prefill {p1} --decode {d0} --decode {d1}"
FULL = "env BATON_PROMPT_MODE=local " + SERVE
FULL += " --redis {redis} --tokenizer {tokenizer} --api-keys-file {keys} --policy lmetric"
LOAD_ONLY = "env BATON_PROMPT_MODE=off " + SERVE + " --policy round_robin"
OURS = {"baton": FULL, "load-only": LOAD_ONLY}
"""Every feature of the hot path switched on: prompts read, index in Valkey, keys checked; and the least there is.

Policies that give every request both legs: `joint` would spare stand-ins, which compute nothing, the first.
"""

NAMES = ("port", "p0", "p1", "d0", "d1", "redis", "tokenizer", "keys")
"""What a gateway's command may name in braces."""

START_S = 60.0
SERVED = 5
"""Requests answered a tenth of a second apart, before a gateway counts as started."""

_SCHEDULER = 2
"""Of a process id: the clock of all its threads' CPU time, those that ended among them (CPUCLOCK_SCHED of Linux)."""


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load; `text` is one of `Texts`' kinds."""

    name: str
    size: int
    stream: bool
    connections: int
    interval_s: float = 0.0
    pause_s: float = 0.0
    """Streams rest for so long behind their first event, and each connection has one only."""
    text: str = "same"
    abort: int = 0
    """Clients leave after so many events."""
    usual: bool = True
    """Measured if none is named."""


WORKS = {
    work.name: work
    for work in (
        Work("request-2k", 2 << 10, False, 16),
        Work("request-64k", 64 << 10, False, 16),
        Work("fresh-64k", 64 << 10, False, 16, text="fresh"),
        Work("fresh-220k", 220 << 10, False, 16, text="fresh", usual=False),
        Work("turns-64k", 64 << 10, False, 16, text="turns"),
        Work("stream-paced", 2 << 10, True, 64, 0.01),
        Work("stream-256", 2 << 10, True, 256, 0.01, usual=False),
        Work("stream-firehose", 2 << 10, True, 32),
        Work("stream-aborted", 2 << 10, True, 64, 0.001, abort=8, usual=False),
        Work("stream-idle", 2 << 10, True, 9_000, pause_s=30.0, usual=False),
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
    gap_p99_ms: float
    rss_mb: float
    completed: int
    bad: int


def tree(guard: int) -> list[int]:
    """What runs under a guard, without the two processes of the guard itself."""
    return descendants(guard)[1:]


def cpu_s(guard: int) -> dict[int, float]:
    """CPU seconds that each process of a guarded tree has used, threads that ended included."""
    used = {}
    for process in tree(guard):
        with suppress(OSError):  # it ended just now
            used[process] = time.clock_gettime((~process << 3) | _SCHEDULER)
    return used


def rss_mb(guard: int) -> float:
    """Resident memory of a guarded process tree."""
    pages = 0
    for process in tree(guard):
        with suppress(OSError):  # it ended just now
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
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


@contextmanager
def surroundings() -> Iterator[dict[str, str]]:
    """What our own gateway needs to have everything switched on: a Valkey, a tokenizer, a key."""
    with TemporaryDirectory(prefix="baton-") as folder, pinned(cores()[1]), Embedded() as valkey:
        tokenizer = make_tiny_model(Path(folder, "model"))
        keys = Path(folder, "keys")
        keys.write_text(KEY + "\n")
        yield {"redis": valkey.url, "tokenizer": str(tokenizer), "keys": str(keys)}


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """On one core, and all children with us."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def filled(command: str, names: Mapping[str, object]) -> list[str]:
    """The words of a command, with values for the names in braces. Raises `ValueError` with the mend."""
    try:
        return shlex.split(command.format_map(names))
    except (AttributeError, LookupError, ValueError) as error:
        why = f"no name {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{command!r}: {why}: names in braces: {', '.join(NAMES)}") from None


def measure(command: str, work: Work, seconds: float, names: Mapping[str, str]) -> Figures:
    """One run of one gateway; `names` are put into its command. Raises `RuntimeError` if that starts none."""
    theirs, ours = cores()
    ports = free_ports(19100)
    engines = [next(ports) for _ in range(4)]
    port = next(ports)
    urls = dict(zip(("p0", "p1", "d0", "d1"), (f"http://127.0.0.1:{p}" for p in engines), strict=True))
    argv = filled(command, {"port": port, **urls, **names})
    standin = [sys.executable, "-m", "load.standin", str(work.interval_s), str(work.pause_s), *map(str, engines)]

    def load(seconds: float) -> Counts:
        seconds = 0 if work.pause_s else seconds
        texts = partial(Texts, work.text, work.size)
        return asyncio.run(blast(port, texts, work.stream, work.connections, seconds, work.abort))

    with pinned(ours), running(standin, ours), running(argv, theirs) as gateway:
        _answers(gateway, argv, port)
        if not work.pause_s:
            load(0.2)  # warm-up
        before = cpu_s(gateway.pid)
        start = time.perf_counter()
        counts = load(seconds)
        took = time.perf_counter() - start
        used = sum(after - before.get(process, 0.0) for process, after in cpu_s(gateway.pid).items())
        memory = rss_mb(gateway.pid)
    units = counts.completed * (EVENTS if work.stream else 1) + counts.aborted * work.abort
    return Figures(
        cpu_us=used * 1e6 / units if units else 0.0,
        per="event" if work.stream else "request",
        rps=(counts.completed + counts.aborted) / took,
        ttft_p50_ms=_quantile(counts.ttft_s, 50),
        ttft_p99_ms=_quantile(counts.ttft_s, 99),
        gap_p99_ms=_quantile(counts.gaps_s, 99) if work.interval_s else 0.0,
        rss_mb=memory,
        completed=counts.completed + counts.aborted,
        bad=counts.bad,
    )


def _quantile(times_s: list[float], percent: int) -> float:
    """In milliseconds; 0 where too little was measured."""
    return statistics.quantiles(times_s, n=100)[percent - 1] * 1e3 if len(times_s) > 1 else 0.0


def _compares(process: int) -> bool:
    with suppress(OSError):
        return same.__name__.encode() in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def _answers(gateway: subprocess.Popen[bytes], command: Sequence[str], port: int) -> None:
    """Wait until the gateway has served some requests in a row and compares no tokenizers beside them any more."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    deadline = time.monotonic() + START_S
    served = 0
    while time.monotonic() < deadline and gateway.poll() is None:
        try:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            headers = {"authorization": f"Bearer {KEY}"}
            status = httpx.post(url, json=body, headers=headers, timeout=2, trust_env=False).status_code
            served = served + 1 if status == 200 and not any(map(_compares, tree(gateway.pid))) else 0
            if served == SERVED:
                return
        except httpx.HTTPError:
            served = 0
        time.sleep(0.1)
    ended = gateway.poll()
    how = f"did not answer within {START_S:g} s" if ended is None else f"ended with {ended} before it answered"
    raise RuntimeError(f"{shlex.join(command)} {how}")
