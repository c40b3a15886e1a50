"""Layouts as data: which engines stand on which GPUs of which host, as a fleet file.

A shape is `4P+4D`, `1P-TP4+1D-TP4`, `8C`: so many engines that prefill, decode, or do both, of so many GPUs each.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from engines.fleet import Fleet, FleetError
from engines.topology import Topology

PRESETS = {
    "collocated": "every GPU an engine that does both",
    "packed": "half of the GPUs prefill, the others decode (4P+4D on 8 GPUs); the default",
    "1P-TP4+1D-TP4": "one large engine for each, on 8 GPUs",
    "2P-TP2+1D-TP4": "two small ones that prefill, a large one that decodes, on 8 GPUs",
    "spread": "over hosts: the first half of the hosts prefill, the others decode, an engine for each GPU",
}

_ROLES = {"P": "prefill", "D": "decode", "C": "both"}
_GROUP = re.compile(r"(\d+)([PDC])(?:-TP(\d+))?")
HTTP, NIXL, EVENTS, REPLAY = 8101, 5600, 5700, 5800
"""First ports on each host; NIXL takes one for each GPU of an engine."""


class Group(NamedTuple):
    """Equal engines."""

    number: int
    letter: str
    tp: int


class Place(NamedTuple):
    """One host: what stands there."""

    name: str
    address: str
    gpus: Sequence[int]
    shape: str


def groups(shape: str) -> list[Group]:
    """Read a shape. Raises `FleetError`."""
    found = [_GROUP.fullmatch(part.strip()) for part in shape.upper().split("+")]
    if not all(found):
        raise FleetError(f"layout: {shape!r}: give one of {', '.join(PRESETS)}, or a shape like 2P-TP2+1D-TP4")
    return [Group(int(one[1]), one[2], int(one[3] or 1)) for one in found if one is not None]


def shape_of(preset: str, gpus: int) -> str:
    """The shape that a preset is on one host. Raises `FleetError`."""
    if preset == "collocated":
        return f"{gpus}C"
    if preset == "packed":
        if gpus < 2:
            raise FleetError("layout: packed: prefill and decode want a GPU each: give --gpus 2 or more")
        return f"{gpus // 2}P+{gpus - gpus // 2}D"
    if preset == "spread":
        raise FleetError("layout: spread: name the hosts: --host gpu1=10.0.0.1 --host gpu2=10.0.0.2")
    return preset


def places(hosts: Sequence[str], preset: str, gpus: int) -> list[Place]:
    """Hosts as `NAME=ADDRESS` or `NAME=ADDRESS/SHAPE`, or this one if there is none. Raises `FleetError`."""
    if not hosts:
        return [Place("localhost", "127.0.0.1", range(gpus), shape_of(preset, gpus))]
    if preset == "spread" and len(hosts) < 2:
        raise FleetError("layout: spread: give two hosts or more, or --preset packed for one")
    found = []
    for at, text in enumerate(hosts):
        name, _, rest = text.partition("=")
        address, _, shape = rest.partition("/")
        if not name or not address:
            raise FleetError(f"layout: --host {text}: give NAME=ADDRESS or NAME=ADDRESS/SHAPE")
        if not shape and preset == "spread":
            shape = f"{gpus}P" if at < len(hosts) // 2 else f"{gpus}D"
        found.append(Place(name, address, range(gpus), shape or shape_of(preset, gpus)))
    return found


def lay(model: str, places: Sequence[Place], topology: Topology | None = None, args: Sequence[str] = ()) -> Fleet:
    """The fleet of these hosts; GPUs of one engine are near each other where `topology` tells. Raises `FleetError`."""
    numbers = dict.fromkeys(_ROLES, 0)
    engines: list[dict[str, Any]] = []
    for place in places:
        engines += _on(place, topology or Topology(), numbers)
    hosts = {place.name: {"address": place.address} for place in places if place.name != "localhost"}
    raw = {"models": {model: {"path": model, "args": list(args)}}, "engines": engines}
    return Fleet.parse({**raw, **({"hosts": hosts} if hosts else {})}, "layout")


def _on(place: Place, topology: Topology, numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    wanted = groups(place.shape)
    needs = sum(group.number * group.tp for group in wanted)
    if needs > len(place.gpus):
        raise FleetError(
            f"layout: {place.shape} needs {needs} GPUs, {place.name} has {len(place.gpus)}: give another --preset"
        )
    free = list(place.gpus)
    at, nixl = 0, NIXL
    for group in sorted(wanted, key=lambda group: -group.tp):  # the large ones first, while near GPUs are free
        for _ in range(group.number):
            (gpus, *_) = topology.groups(free, group.tp)
            free = [gpu for gpu in free if gpu not in gpus]
            yield {
                "name": f"{group.letter.lower()}{numbers[group.letter]}",
                "role": _ROLES[group.letter],
                "host": place.name,
                "gpus": gpus,
                "tp": group.tp,
                "port": HTTP + at,
                "nixl_port": nixl,
                "events_port": EVENTS + at,
                "replay_port": REPLAY + at,
            }
            numbers[group.letter] += 1
            at, nixl = at + 1, nixl + group.tp
