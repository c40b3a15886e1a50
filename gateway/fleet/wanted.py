"""What the fleet should be: engines by name, as plain data that several sources may tell."""

from collections.abc import Mapping
from dataclasses import dataclass

import policies.contract as contract
from engines.fleet import ANY, LEASE_S, Role
from engines.fleet import Fleet as FleetFile
from engines.model import profile as profiles

Links = Mapping[tuple[str, str], contract.Link]


_RANK = "#rank="


def of_rank(url: str, rank: int) -> str:
    """The URL by which all gateways know one data-parallel rank of the engine at `url`."""
    return f"{url}{_RANK}{rank}"


def rank_of(url: str) -> int | None:
    """Which data-parallel rank a URL means; None: the engine as a whole."""
    _, found, number = url.partition(_RANK)
    return int(number) if found else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One engine that requests should be sent to."""

    name: str
    url: str
    role: Role
    model: str = ""
    """The model it must serve; empty: whatever it says that it serves."""
    host: str = "localhost"
    lease_s: float = LEASE_S
    speed: contract.Speed = contract.ASSUMED
    """How fast it is, until that is seen."""
    cost: float = 1.0
    """What a second of it costs, against the others."""
    drain: bool = False
    """Nothing new goes there, and it stays in the fleet."""

    def same_engine(self, other: "Wanted") -> bool:
        """Whether both mean one process, so that all that is known of it still holds."""
        return (self.name, self.url, self.model) == (other.name, other.url, other.model)


def of_file(file: FleetFile) -> list[Wanted]:
    """The engines that a fleet file names, each data-parallel rank by itself. Raises `UnknownProfile`."""
    return [
        Wanted(
            e.name if e.dp == 1 else f"{e.name}.{rank}",
            file.url(e) if e.dp == 1 else of_rank(file.url(e), rank),
            e.role,
            model="" if e.model == ANY else e.model,
            host=e.host,
            lease_s=file.models[e.model].lease_s,
            speed=profiles.load(e.profile).speed if e.profile else contract.ASSUMED,
            cost=e.cost,
            drain=e.drain,
        )
        for e in file.engines
        for rank in range(e.dp)
    ]


def links_of(file: FleetFile) -> Links:
    """The links between hosts that a fleet file names."""
    return {(k.a, k.b): contract.Link(gbps=k.gbps, latency_us=k.latency_us) for k in file.links}
