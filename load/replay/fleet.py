"""The simulated fleet: from a shape such as `4P4D`, or from a fleet file."""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from engines.fleet import Fleet as FleetFile
from engines.fleet import Role
from engines.model.profile import Profile, load
from policies.contract import Link

_SHAPE = re.compile(r"(\d+)([PDC])")
_SPLITS = re.compile(r"(\d+)PD")
_ROLES = {"P": Role.PREFILL, "D": Role.DECODE, "C": Role.BOTH}


class BadFleet(ValueError):
    """Neither a shape nor a fleet file; the message says what was wanted."""


class Member(msgspec.Struct, frozen=True):
    """One simulated engine."""

    name: str
    role: Role
    host: str
    profile: Profile
    cost: float = 1.0
    """What a second of it costs, against the others."""


class Shape(msgspec.Struct, frozen=True):
    """Engines and links."""

    members: tuple[Member, ...]
    links: Mapping[tuple[str, str], Link]

    @property
    def gpus(self) -> int:
        """That all of them take."""
        return sum(member.profile.gpus for member in self.members)

    def link(self, a: str, b: str) -> Link:
        return self.links.get((a, b)) or self.links[b, a]


def fleets(text: str, profile: Profile, hosts: int = 1, slow_gbps: float | None = None) -> dict[str, Shape]:
    """Several fleets with commas, by name: shapes and fleet files.

    `8PD` stands for every way to split eight engines, `SHAPE@PROFILE` for engines of another kind. Raises `BadFleet`,
    `FleetError`, `UnknownProfile`.
    """
    found = {}
    for part in filter(None, text.split(",")):
        size, _, named = part.partition("@")
        kind = load(named) if named else profile
        if split := _SPLITS.fullmatch(size.upper()):
            count = int(split[1])
            for prefills in range(1, count):
                name = f"{prefills}P{count - prefills}D"
                found[name + part[len(size) :]] = shape(name, kind, hosts, slow_gbps)
        elif size.endswith(".toml"):
            found[part] = from_file(Path(size), kind)
        else:
            found[part] = shape(size, kind, hosts, slow_gbps)
    if not found:
        raise BadFleet(f"{text!r} names no fleet: write a shape such as 4P4D, 8PD or 8C, or give a fleet file")
    return found


def shape(text: str, profile: Profile, hosts: int = 1, slow_gbps: float | None = None) -> Shape:
    """`4P4D`: prefill and decode engines; `8C`: collocated ones. Raises `BadFleet`.

    With several `hosts` each role is dealt out over them in turn; `slow_gbps` is the link between two of them.
    """
    parts = _SHAPE.findall(text.upper())
    if not parts or "".join(n + letter for n, letter in parts) != text.upper():
        raise BadFleet(f"{text!r} is no fleet: write a shape such as 4P4D or 8C, or give a fleet file")
    members = []
    for number, letter in parts:
        for at in range(int(number)):
            host = f"h{at % hosts}"
            members.append(Member(f"{letter.lower()}{at}", _ROLES[letter], host, profile))
    return Shape(_checked(members), _links({m.host for m in members}, profile, slow_gbps))


def from_file(path: Path, profile: Profile) -> Shape:
    """The engines of a fleet file; those that name no profile have this one. Raises `FleetError`, `UnknownProfile`."""
    file = FleetFile.load(path)
    members = [Member(e.name, e.role, e.host, load(e.profile) if e.profile else profile, e.cost) for e in file.engines]
    links = _links({m.host for m in members}, profile, None)
    links |= {(link.a, link.b): Link(gbps=link.gbps, latency_us=link.latency_us) for link in file.links}
    return Shape(_checked(members), links)


def _checked(members: list[Member]) -> tuple[Member, ...]:
    if not any(member.role.decodes for member in members):
        raise BadFleet("the fleet has no engine that decodes")
    return tuple(members)


def _links(hosts: set[str], profile: Profile, slow_gbps: float | None) -> dict[tuple[str, str], Link]:
    near = Link(gbps=profile.link_gbps, latency_us=profile.link_latency_us)
    far = Link(gbps=slow_gbps, latency_us=profile.link_latency_us) if slow_gbps else near
    return {(a, b): near if a == b else far for a in hosts for b in hosts}
