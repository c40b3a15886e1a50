"""What is to run, as data: all that makes one process what it is. Equal specs are one and the same process."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.fleet import Engine, Fleet, Role
from engines.topology import Topology
from engines.vllm import launch


@dataclass(frozen=True, slots=True)
class Spec:
    """A process that answers HTTP when it is ready."""

    name: str
    command: tuple[str, ...]
    health: str
    """URL that answers 200 when it is."""
    env: Mapping[str, str] = field(default_factory=dict)
    metrics: str = ""
    """URL of an engine's metrics; empty for what is no engine."""
    role: Role | None = None
    gpus: tuple[int, ...] = ()
    cpus: str = ""
    """Where it may run; empty: anywhere."""
    ports: tuple[tuple[str, int], ...] = ()
    """(address, port) of all that it binds."""


def of_engine(fleet: Fleet, engine: Engine, topology: Topology) -> Spec:
    """The process of an engine that we start."""
    command, env = launch(fleet, engine, os.environ.get("PYTHONPATH", ""))
    url, address = fleet.url(engine), fleet.hosts[engine.host].address
    return Spec(
        name=engine.name,
        command=tuple(command),
        health=f"{url}/health",
        env=env,
        metrics=f"{url}/metrics",
        role=engine.role,
        gpus=engine.gpus,
        cpus=topology.cpus(engine.gpus) if engine.device == "cuda" else "",
        ports=tuple((address, port) for _, port in engine.ports()),
    )
