"""Several hosts on this machine: network namespaces with addresses of their own, on one switch."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.index.embedded import _end_with_parent

DELAY_MS = 1
RATE = "1gbit"


def ip(*arguments: str, check: bool = True) -> str:
    """`ip ARGUMENTS`. Raises `AssertionError` with what it says."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def forbidden() -> str:
    """Why there can be no hosts here; nothing if there can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    tried = subprocess.run(["unshare", "--net", "ip", "link", "add", "type", "veth"], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"unshare --net ip link add type veth: {tried.stderr.strip()}"


class Host:
    """A namespace with one cable to the switch, and the processes that run there."""

    def __init__(self, network: "Network", name: str, number: int) -> None:
        self.name = name
        self.address = f"10.77.0.{number}"
        self.space = f"{network.prefix}-{name}"
        self.namespace = Path("/run/netns", self.space)
        self._network = network
        self._cable = f"to-{name}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        ip("netns", "add", self.space)
        ip(
            "-n",
            network.switch,
            "link",
            "add",
            self._cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.space,
        )
        ip("-n", network.switch, "link", "set", self._cable, "up")
        ip("-n", self.space, "link", "set", "lo", "up")
        ip("-n", self.space, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.space, "link", "set", "eth0", "up")
        self.shape = self._shape()
        self.plug()

    def _shape(self) -> str:
        """Make its network as slow as one; the kernel may know only some of the ways. Returns what it is now."""
        for how in (
            ["netem", "delay", f"{DELAY_MS}ms", "rate", RATE],
            ["tbf", "rate", RATE, "burst", "256k", "latency", "20ms"],
        ):
            words = ["tc", "-n", self.space, "qdisc", "add", "dev", "eth0", "root", *how]
            if subprocess.run(words, capture_output=True, check=False).returncode == 0:
                return " ".join(how)
        return ""

    def plug(self) -> None:
        """Connect it to the others."""
        ip("-n", self._network.switch, "link", "set", self._cable, "master", "bridge")

    def unplug(self) -> None:
        """Cut it off: from now on packets vanish, in both directions, and nobody is told."""
        ip("-n", self._network.switch, "link", "set", self._cable, "nomaster")

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> None:
        """Run a command here; what it says is in `NAME.log` of the network's folder."""
        with (self._network.folder / f"{self.name}-{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["nsenter", f"--net={self.namespace}", *command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def baton(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Run a verb of ours here."""
        self.start(name, sys.executable, "-m", "gateway.cli", *arguments, env=env)

    def kill(self, name: str) -> None:
        """End one process at once, without what it started."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def crash(self) -> None:
        """The power fails: every process here is gone, and so is the network."""
        self.unplug()
        while pids := ip("netns", "pids", self.space, check=False).split():
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in self._processes.values():
                process.poll()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def remove(self) -> None:
        self.crash()
        ip("netns", "delete", self.space)


class Network:
    """A switch, and the hosts on it; `folder` takes their logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"baton{os.getpid()}"
        self.switch = f"{self.prefix}-switch"
        self.hosts: list[Host] = []

    def host(self, name: str) -> Host:
        """One more host."""
        made = Host(self, name, len(self.hosts) + 1)
        self.hosts.append(made)
        return made

    def __enter__(self) -> Self:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0", "stp_state", "0")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self.hosts:
            host.remove()
        ip("netns", "delete", self.switch)
