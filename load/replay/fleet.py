"""The simulated fleet: from a shape such as `4P4D`, or from a fleet file."""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from engines.fleet import Fleet as FleetFile
from engines.fleet import Role
from engines.model.profile import Profile
from policies.contract import Link

_SHAPE = re.compile(r"(\d+)([PDC])")
_ROLES = {"P": Role.PREFILL, "D": Role.DECODE, "C": Role.BOTH}


class BadFleet(ValueError):
    """Neither a shape nor a fleet file; the message says what was wanted."""


class Member(msgspec.Struct, frozen=True):
    """One simulated engine."""

    name: str
    role: Role
    host: str
    profile: Profile


class Shape(msgspec.Struct, frozen=True):
    """Engines and links."""

    members: tuple[Member, ...]
    links: Mapping[tuple[str, str], Link]

    def link(self, a: str, b: str) -> Link:
        return self.links.get((a, b)) or self.links[b, a]


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
    """The engines of a fleet file, all of the same profile. Raises `FleetError`."""
    file = FleetFile.load(path)
    members = [Member(e.name, e.role, e.host, profile) for e in file.engines]
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
