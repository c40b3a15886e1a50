"""What must hold before anything is started: nobody else runs in this folder, and the ports are free."""

import fcntl
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.fleet import Engine, Fleet


class CannotStart(Exception):
    """Something is missing or in the way; the message says what to do."""


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold the folder of logs and fleet file for one `baton up`. Raises `CannotStart` if another holds it.

    The kernel drops the lock with its holder, however that ends.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CannotStart(
                f"another `baton up` (process {file.read() or '?'}) runs in {state.resolve()}: "
                "stop it, or set BATON_STATE_DIR to another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_here(address: str) -> bool:
    """True if `address` (or a name that resolves to it) belongs to this machine."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def to_start(fleet: Fleet, host: str = "") -> list[Engine]:
    """The engines that this machine (or the host of that name) is to start, in the order of the file."""
    if host and host not in fleet.hosts:
        raise CannotStart(f"--host {host}: not in [hosts]: add [hosts.{host}] or use one of {', '.join(fleet.hosts)}")
    mine = [e for e in fleet.engines if e.managed and (e.host == host or not host)]
    return mine if host else [e for e in mine if is_here(fleet.hosts[e.host].address)]


def can_start(fleet: Fleet, engines: Sequence[Engine], gpus: Collection[int]) -> None:
    """Raises `CannotStart` if a port is taken, a GPU is missing (unless `gpus` is empty: unknown), or a model is."""
    for engine in engines:
        where = f"engines.{engine.name}"
        for key, port in engine.ports():
            address = fleet.hosts[engine.host].address
            must_be_free(address, port, f"{where}.{key}: choose another in the fleet file")
        fits(fleet, engine, gpus)


def fits(fleet: Fleet, engine: Engine, gpus: Collection[int]) -> None:
    """Raises `CannotStart` if a GPU is missing (unless `gpus` is empty: unknown), or its model is."""
    if engine.device == "cuda" and (missing := [gpu for gpu in engine.gpus if gpu not in gpus]) and gpus:
        raise CannotStart(
            f"engines.{engine.name}.gpus: there is no GPU {', '.join(map(str, missing))} here, only "
            f"{', '.join(map(str, gpus))}: correct `gpus`, or see `baton engines layout --gpus {len(gpus)}`"
        )
    path = fleet.models[engine.model].path
    if path.startswith(("/", "./", "../", "~")) and not Path(path, "config.json").is_file():
        raise CannotStart(f"models.{engine.model}.path: no config.json in {path}: correct it, or mount that folder")


def is_free(host: str, port: int) -> bool:
    """True if a server could listen there now."""
    try:
        must_be_free(host, port, "")
    except CannotStart:
        return False
    return True


def ports_are_free(fleet: Fleet, host: str, port: int) -> None:
    """Raises `CannotStart` if something listens where the gateway is to, or an engine will."""
    must_be_free(host, port, "--port: choose another for the gateway")
    for engine in to_start(fleet):
        for key, taken in engine.ports():
            if taken == port:
                raise CannotStart(f"port {port} is engines.{engine.name}.{key}: choose another with --port")


def must_be_free(host: str, port: int, mend: str) -> None:
    """Raises `CannotStart` with this mend if a server could not listen there."""
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotStart(f"{host}: {error.strerror}: give an address of this machine") from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind(where)
        except PermissionError:
            raise CannotStart(f"port {port} needs privileges; {mend}") from None
        except OSError as error:
            raise CannotStart(f"port {port} on {host}: {error.strerror}; stop what listens there, or {mend}") from None
