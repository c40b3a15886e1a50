"""The Redis or Valkey that a fleet shares, by URL: one server, one behind Sentinels, or a cluster.

redis://[[user:]password@]host:port/0      rediss:// with TLS, unix:///path for a socket
redis+sentinel://[[user:]password@]host:port[,host:port...]/NAME[/0]
redis+cluster://[[user:]password@]host:port[,host:port...]
"""

import asyncio
import re
from contextlib import suppress
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from redis import asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError, ResponseError

SENTINEL, CLUSTER = "redis+sentinel", "redis+cluster"
SENTINEL_PORT, PORT = 26379, 6379
TIMEOUT_S = 2.0


class StoreError(ValueError):
    """The URL cannot be used; the message says what is wrong."""


class Address(NamedTuple):
    """A server: its socket's path, or host and port."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Place(NamedTuple):
    """What a URL means."""

    kind: str
    """"" for one server, or the scheme of the others."""
    seeds: tuple[Address, ...]
    """The server, the sentinels, or some nodes of the cluster."""
    master: str = ""
    """The name by which sentinels know the primary."""
    user: str = ""
    password: str = ""
    database: int = 0
    tls: bool = False


def parse(url: str) -> Place:
    """Raises `StoreError`."""
    scheme = url.partition("://")[0]
    if scheme not in (SENTINEL, CLUSTER):
        try:
            options = parse_url(url)
        except ValueError as error:
            schemes = f"redis, rediss, unix, {SENTINEL} or {CLUSTER}"
            raise StoreError(f"{url}: {error}: give one of {schemes}") from None
        path = str(options.get("path", ""))
        address = Address(path=path) if path else Address(options.get("host", "localhost"), options.get("port", PORT))
        user, password = options.get("username") or "", options.get("password") or ""
        return Place("", (address,), "", user, password, int(options.get("db") or 0), scheme == "rediss")
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.rpartition(":")
    seeds = tuple(_address(host, SENTINEL_PORT if scheme == SENTINEL else PORT) for host in hosts.split(",") if host)
    name, _, database = parts.path.strip("/").partition("/")
    if not seeds:
        raise StoreError(f"{url}: no host: give {scheme}://host:port,host:port")
    if scheme == SENTINEL and not name:
        raise StoreError(f"{url}: no name: give {SENTINEL}://host:port/NAME, the name of the primary in sentinel.conf")
    if database and not database.isdigit():
        raise StoreError(f"{url}: {database!r} is no database: give a number")
    return Place(scheme, seeds, name, unquote(user), unquote(password), int(database or 0))


def _address(host: str, port: int) -> Address:
    name, colon, digits = host.rpartition(":")
    if not colon:
        return Address(host, port)
    if not digits.isdigit():
        raise StoreError(f"{host}: the port is no number")
    return Address(name.strip("[]"), int(digits))


def client(place: Place) -> Any:
    """A client of redis-py for what is not hot; it finds the primary, or the cluster's nodes, by itself."""
    more: dict[str, Any] = {"username": place.user or None, "password": place.password or None}
    limits: dict[str, Any] = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    if place.kind == SENTINEL:
        sentinel: Any = cast(Any, Sentinel)(
            [(seed.host, seed.port) for seed in place.seeds], sentinel_kwargs=limits, **limits
        )
        return sentinel.master_for(place.master, db=place.database, **more)
    if place.kind == CLUSTER:
        nodes = [ClusterNode(seed.host, seed.port) for seed in place.seeds]
        return RedisCluster(startup_nodes=nodes, ssl=place.tls, **more, **limits)
    (seed,) = place.seeds
    if seed.path:
        return redis.Redis(unix_socket_path=seed.path, db=place.database, **more, **limits)
    return redis.Redis(host=seed.host, port=seed.port, db=place.database, ssl=place.tls, **more, **limits)


def not_cancelled() -> None:
    """Raise CancelledError if the running task was told to end: redis-py loses that where it comes during a call."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def close(one: Any) -> None:
    """Close a client, and what asks sentinels for it."""
    with suppress(RedisError, OSError, TimeoutError):
        await one.aclose()
    manager = getattr(getattr(one, "connection_pool", None), "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        with suppress(RedisError, OSError, TimeoutError):
            await sentinel.aclose()


async def detect(url: str) -> Place:
    """What a URL means, after a look: a server of a cluster that has several is taken for the cluster.

    Raises `StoreError`, `redis.RedisError`, OSError, TimeoutError.
    """
    place = parse(url)
    if place.kind:
        return place
    async with client(place) as one:
        try:
            told = await one.execute_command("CLUSTER", "INFO")
        except ResponseError:  # cluster support is off
            return place
    size = re.search(rb"cluster_size:(\d+)", told)
    return place._replace(kind=CLUSTER) if size is not None and int(size[1]) > 1 else place
