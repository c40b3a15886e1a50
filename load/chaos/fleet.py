"""A throw-away fleet: doubles, gateways and Valkey as real processes, each of which can be killed, stopped and started.

All of them end with this process, however it ends (the kernel kills them), and are ended and waited for before that.
"""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import tomli_w

from engines.double.folder import write_folder
from engines.guard import die_with_parent
from engines.layout import free_ports
from gateway.api import address
from gateway.index.embedded import Embedded
from load.chaos.traffic import MODEL
from load.chaos.truth import BLOCK

START_S = 60.0
"""Generous: a busy machine takes long to import Python modules."""

_POLL_S = 0.05

LEASE_S = 6.0

SETTINGS: dict[str, Any] = {
    "policy": "lmetric",
    "connect_timeout_s": 1.0,
    "prefill_timeout_s": 2.0,
    "first_byte_timeout_s": 4.0,
    "idle_timeout_s": 2.0,
    "request_timeout_s": 30.0,
    "client_timeout_s": 20.0,
    "engine_wait_s": 5.0,
    "lease_margin_s": 2.0,
    "health_interval_s": 0.25,
    "health_timeout_s": 1.0,
    "vitals_interval_s": 1.0,
    "stall_s": 2.0,
    "probe_timeout_s": 1.0,
    "eject_s": 0.5,
    "drift_alarm_s": 3.0,
    "drain_s": 15.0,
    "lookup_budget_s": 0.02,
    "trace_ratio": 0.0,
}
"""Of the gateways: an hour's deadlines, compressed into minutes as the storm is. `lmetric` splits all that may be."""

LIMITS = {"num-blocks": 1025, "max-model-len": 2048, "decode-ms": 6, "prefill-ms-per-1k": 40, "lease-s": LEASE_S}
"""Of the doubles: so few blocks that they are reused within seconds, so slow that blows meet requests."""


class CannotStart(RuntimeError):
    """A process did not come up; the message says which and shows the end of its log."""


class Child:
    """One process. `url` is where it answers 200 when it is ready."""

    def __init__(self, name: str, argv: Sequence[str], ready: str, log: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.ready = ready
        self.log = log
        self.starts = 0
        self.started_s = 0.0
        self.killed_s = 0.0
        """When it was last killed without a word, by `time.monotonic`."""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *more: str) -> None:
        """Start it; `ready_within` waits for it. Raises `CannotStart`."""
        self.starts += 1
        self.started_s = time.monotonic()
        with self.log.open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    [*self.argv, *more],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is ours to act upon
                    preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGKILL),
                )
            except OSError as error:
                raise CannotStart(f"{self.name}: {self.argv[0]}: {error.strerror}: correct its command") from None

    def send(self, what: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(what)

    async def kill(self) -> None:
        """kill -9, and gone."""
        self.killed_s = time.monotonic()
        self.send(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> None:
        if self.process is not None:
            await asyncio.to_thread(self.process.wait)

    async def ready_within(self, http: httpx.AsyncClient, seconds: float = START_S) -> None:
        """Wait until it answers. Raises `CannotStart`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.running:
            with suppress(httpx.HTTPError):
                if (await http.get(self.ready)).status_code == 200:
                    return
            await asyncio.sleep(_POLL_S)
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        raise CannotStart(f"{self.name} did not come up ({shlex.join(self.argv)}):\n" + "\n".join(lines))

    def rss_mb(self) -> float:
        """Resident memory; 0 once it has ended."""
        with suppress(OSError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0


class Fleet:
    """Engines p0.., d0.., gateways g0.. and a store, from `async with` to its end."""

    def __init__(
        self,
        folder: Path,
        prefill: int,
        decode: int,
        gateways: int,
        seed: int,
        command: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`command` starts another gateway than ours, with {port} {redis} {p0} {p1} .. {d0} ..; one that asks no
        engine for anything it cannot do itself is all that is wanted. Raises `CannotStart` if it is no command."""
        self.folder = folder
        self.seed = seed
        self.store = Embedded()
        ports = free_ports(19200 + os.getpid() % 600 * 20)  # below those that a socket gets which asks for any
        self.engines: dict[str, Child] = {}
        self.urls: dict[str, str] = {}
        for role, count in (("prefill", prefill), ("decode", decode)):
            for number in range(count):
                name, port = f"{role[0]}{number}", next(ports)
                self.urls[name] = f"http://127.0.0.1:{port}"
                self.engines[name] = self._double(name, role, port)
        self.ports = [next(ports) for _ in range(gateways)]
        self.ours = not command
        self.gateways = {f"g{at}": self._gateway(f"g{at}", port, command) for at, port in enumerate(self.ports)}
        self._settings = {**SETTINGS, **(settings or {})}
        self.past: Counter[str] = Counter()
        """What gateways that have ended had counted."""
        self.http = httpx.AsyncClient(timeout=5.0, trust_env=False)

    @property
    def names(self) -> list[str]:
        """Of everything that can be hit, the store apart."""
        return [*self.engines, *self.gateways]

    def _double(self, name: str, role: str, port: int) -> Child:
        argv = [sys.executable, "-m", "gateway.cli", "double", "--prefill", "0", "--decode", "0", f"--{role}", "1"]
        argv += ["--port", str(port), "--model", MODEL, "--block-size", str(BLOCK), "--events"]
        argv += [part for option, value in LIMITS.items() for part in (f"--{option}", str(value))]
        return Child(name, argv, f"{self.urls[name]}/health", self.folder / f"{name}.log")

    def _gateway(self, name: str, port: int, command: str) -> Child:
        ours = f"{sys.executable} -m gateway.cli serve --config {self.folder}/fleet.toml --port {{port}}"
        ours += " --redis {redis} --log-level warning"
        try:
            argv = shlex.split((command or ours).format(port=port, redis=self.store.url, **self.urls))
        except (LookupError, ValueError) as error:
            known = ", ".join(("port", "redis", *self.urls))
            raise CannotStart(f"{command!r}: {error!r}: names in braces: {known}") from None
        ready = f"http://127.0.0.1:{port}/{'health' if command else 'readyz'}"
        return Child(name, argv, ready, self.folder / f"{name}.log")

    def start_engine(self, name: str) -> None:
        """Start a double; each of its lives draws ids of its own, as engines do."""
        child = self.engines[name]
        child.start("--seed", str(hash((self.seed, *name.encode(), child.starts)) % (1 << 31)))

    async def tell(self, gateway: str, name: str, what: str) -> bool:
        """Have a gateway `drain` or `resume` an engine, as an operator does; False if it does not listen."""
        port = self.ports[int(gateway[1:])]
        transport = httpx.AsyncHTTPTransport(uds=address.url(address.AUTO, port).removeprefix("unix://"))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                return (await http.post(f"/fleet/{name}/{what}")).status_code == 200
        except httpx.HTTPError:
            return False

    async def order(self, name: str, **orders: Any) -> bool:
        """Tell a double what to do; False if it does not listen."""
        try:
            answer = await self.http.post(f"{self.urls[name]}/double/control", json=orders)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    async def state(self, name: str) -> dict[str, Any]:
        """What a double says of itself. Raises `httpx.HTTPError`."""
        found: dict[str, Any] = (await self.http.get(f"{self.urls[name]}/double/control")).json()
        return found

    async def __aenter__(self) -> Self:
        try:
            engines = [
                {"name": name, "role": "prefill" if name[0] == "p" else "decode", "url": url}
                for name, url in self.urls.items()
            ]
            tokenizer = str(write_folder(self.folder / "tokenizer"))
            models = {MODEL: {"lease_s": LEASE_S, "block_size": BLOCK, "tokenizer": tokenizer}}
            file = {"gateway": self._settings, "models": models, "engines": engines}
            (self.folder / "fleet.toml").write_text(tomli_w.dumps(file))
            self.store.start()
            for name in self.engines:
                self.start_engine(name)
            await asyncio.gather(*(child.ready_within(self.http) for child in self.engines.values()))
            for child in self.gateways.values():
                child.start()
            await asyncio.gather(*(child.ready_within(self.http) for child in self.gateways.values()))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of it; the gateways first, so that they do not complain."""
        for children in (self.gateways.values(), self.engines.values()):
            for child in children:
                child.send(signal.SIGKILL)
        for child in (*self.gateways.values(), *self.engines.values()):
            if child.process is not None:
                child.process.wait()
        self.store.__exit__(None, None, None)
        await self.http.aclose()
