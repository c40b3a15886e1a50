"""Which engines there should be: what several sources say, merged, and what an operator ordered on top of that."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import msgspec

from gateway.fleet.fleet import Change, Fleet
from gateway.fleet.names import Names
from gateway.fleet.wanted import Links, Wanted

log = logging.getLogger(__name__)

OPERATOR = "operator"
Tell = Callable[[Iterable[Wanted]], object]


class Source(Protocol):
    """Something that knows of engines: a registry, a name in DNS."""

    name: str

    async def follow(self, tell: Tell) -> None:
        """Tell all engines that it knows of, again whenever they change; until cancelled."""
        ...


class Orders(msgspec.Struct):
    """What an operator wants otherwise than the sources; until it is taken back, or all workers have ended."""

    added: dict[str, Wanted] = {}
    removed: set[str] = set()
    drained: dict[str, bool] = {}


class Roster:
    """Keeps a fleet as its sources want it. Sources told earlier go first where two speak of one name or URL."""

    def __init__(self, fleet: Fleet, names: Names | None = None) -> None:
        self._fleet = fleet
        self.names = names or Names()
        self._told: dict[str, tuple[Wanted, ...]] = {}
        self.orders = Orders()
        self.origin: dict[str, str] = {}
        """Engine -> the source that it comes from."""
        self.conflicts: list[str] = []
        """Engines that are left out, and why."""

    def tell(self, source: str, wanted: Iterable[Wanted], links: Links | None = None) -> Change:
        """All engines that a source wants now."""
        self._told[source] = tuple(wanted)
        return self._sync(links)

    def order(self, orders: Orders) -> Change:
        """The operator's orders, all of them."""
        self.orders = orders
        return self._sync()

    def again(self) -> Change:
        """A name in DNS means something else."""
        return self._sync()

    def known(self, name: str) -> bool:
        """Whether there is an engine of that name, removed by order or not."""
        told = (*self._told.values(), tuple(self.orders.added.values()))
        return any(one.name == name for wanted in told for one in wanted)

    def _sync(self, links: Links | None = None) -> Change:
        orders = self.orders
        goal: dict[str, Wanted] = {}
        origin: dict[str, str] = {}
        urls: dict[str, str] = {}
        conflicts = []
        told = (*self._told.items(), (OPERATOR, tuple(orders.added.values())))
        self.names.only({one.url for _, wanted in told for one in wanted})
        for source, wanted in told:
            for one in (meant for said in wanted for meant in self.names.expand(said)):
                if one.name in orders.removed:
                    continue
                if (other := urls.get(one.url, one.name if one.name in goal else None)) is not None:
                    conflicts.append(
                        f"engine {one.name} ({one.url}) of {source} is left out: {origin[other]} has engine {other} at "
                        f"{goal[other].url}: give each engine one name and one URL"
                    )
                    continue
                drain = orders.drained.get(one.name, one.drain)
                goal[one.name] = one if drain == one.drain else replace(one, drain=drain)
                origin[one.name], urls[one.url] = source, one.name
        for text in conflicts:
            if text not in self.conflicts:
                log.warning("%s", text)
        self.origin, self.conflicts = origin, conflicts
        return self._fleet.sync(goal.values(), links)
