"""What a supervisor tells gateways of its engines, and how they know that it is one of theirs.

Each supervisor keeps one entry in the shared Redis, under a lease: all its engines, signed with the fleet's secret.
"""

import hashlib
import hmac
import time
from pathlib import Path

import msgspec

from engines.fleet import ANY, Engine, Fleet, Role
from engines.model.profile import load
from policies.contract import Speed

PREFIX = "baton:{registry}:"
"""All keys share a hash tag, so that they are on one node of a cluster."""
HOSTS = f"{PREFIX}hosts"
"""Set of the ids of all supervisors."""
VERSION = f"{PREFIX}version"
"""Counts changes."""

LEASE_S = 10.0
RENEW_S = 2.0
SKEW_S = 120.0
"""An entry that was signed longer ago is old, or a clock is wrong."""
SECRET_BYTES = 16
"""The shortest secret."""


def key(host: str) -> str:
    """Where a supervisor's entry is."""
    return f"{PREFIX}host:{host}"


class Refused(Exception):
    """An entry is not believed; `reason` is one word, the message says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SecretError(ValueError):
    """The fleet's secret cannot be used."""


class Link(msgspec.Struct, frozen=True):
    """As in the fleet file."""

    a: str
    b: str
    gbps: float
    latency_us: float = 0.0


class Record(msgspec.Struct, frozen=True):
    """One engine, as seen from outside of its host."""

    name: str
    url: str
    role: Role
    model: str
    """The name that it serves; empty: whatever it says."""
    host: str = "localhost"
    lease_s: float = 30.0
    tokenizer: str = ""
    """Folder or hub id of the model's tokenizer."""
    block_size: int | None = None
    connector: str = "nixl"
    dp: int = 1
    speed: Speed | None = None
    """How fast it is believed to be; None: not said."""
    cost: float = 1.0
    drain: bool = False


class Entry(msgspec.Struct, frozen=True):
    """All that one supervisor has to tell."""

    host: str
    signed_s: float
    """Unix time."""
    engines: tuple[Record, ...] = ()
    links: tuple[Link, ...] = ()


def of_engine(fleet: Fleet, engine: Engine, address: str = "", drain: bool = False) -> Record:
    """`address`: where others reach it, if that is not its host's. Raises `UnknownProfile`."""
    model = fleet.models[engine.model]
    return Record(
        name=engine.name,
        url=f"http://{address}:{engine.port}" if address else fleet.url(engine),
        role=engine.role,
        model="" if model.name == ANY else model.name,
        host=engine.host,
        lease_s=model.lease_s,
        tokenizer=model.tokenizer or model.path,
        block_size=model.block_size,
        dp=engine.dp,
        speed=load(engine.profile).speed if engine.profile else None,
        cost=engine.cost,
        drain=drain or engine.drain,
    )


def read_secret(path: Path) -> bytes:
    """The fleet's secret. Raises `SecretError`."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}: make it with `openssl rand -hex 32 > {path}`") from None
    if len(secret) < SECRET_BYTES:
        raise SecretError(f"{path}: shorter than {SECRET_BYTES} bytes: make it with `openssl rand -hex 32 > {path}`")
    return secret


def sign(entry: Entry, secret: bytes) -> bytes:
    """The entry as it stands in Redis: 32 bytes of HMAC-SHA256, then JSON."""
    told = msgspec.json.encode(entry)
    return _mac(told, secret) + told


def verify(blob: bytes, host: str, secret: bytes) -> Entry:
    """The entry of supervisor `host`. Raises `Refused`."""
    mac, told = blob[:32], blob[32:]
    if not hmac.compare_digest(mac, _mac(told, secret)):
        raise Refused("signature", f"host {host} signs with another secret: give both sides the same one")
    try:
        entry = msgspec.json.decode(told, type=Entry)
    except msgspec.DecodeError as error:
        raise Refused("unreadable", f"host {host} speaks another version: {error}") from None
    if entry.host != host:
        raise Refused("signature", f"host {host} shows the entry of {entry.host}")
    if abs(time.time() - entry.signed_s) > SKEW_S:
        raise Refused("stale", f"host {host} signed {time.time() - entry.signed_s:.0f} s ago: set its clock (NTP)")
    return entry


def _mac(told: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, b"baton registration 1\0" + told, hashlib.sha256).digest()
