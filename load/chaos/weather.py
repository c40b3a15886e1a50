"""The script of a storm: what happens to whom, when and for how long; a function of the seed alone."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GATEWAY_S = 8.0
"""A gateway that was ended counts as ill for so long, so that the other one is left in peace meanwhile."""

TROUBLE_S = 3.0
"""The same for an engine that was told to spoil its next requests."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One thing that happens. `deed` is a method of `Hand`."""

    at: int
    """The number of the request before which it happens."""
    deed: str
    target: str
    lasts_s: float = 0.0
    orders: Mapping[str, Any] = field(default_factory=dict)
    """For the target, if it is a double."""

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.deed} {self.target}{lasts}"


@dataclass(frozen=True, slots=True)
class _Card:
    """A kind of blow; `whom` is a role, or the first letters of names."""

    deed: str
    whom: str
    shortest_s: float = 0.0
    longest_s: float = 0.0
    faults: tuple[Mapping[str, Any], ...] = ()


DECK = (
    _Card("kill", "p", 0.5, 3.0),
    _Card("kill", "d", 0.5, 3.0),
    _Card("kill", "d", 0.5, 3.0),
    _Card("restart", "pd"),
    _Card("replace", "pd", 1.0, 1.0),
    _Card("hang", "p", 0.3, 5.0),
    _Card("hang", "d", 0.3, 5.0),
    _Card("slow", "p", 2.0, 5.0, ({"slow": 10.0}, {"slow": 30.0})),
    _Card("slow", "d", 2.0, 5.0, ({"slow": 5.0}, {"slow": 20.0})),
    _Card("cut", "d", faults=tuple({"cut_after": after, "cut_next": 6} for after in (1, 2, 7, 20))),
    _Card("cut", "d", faults=tuple({"cut_after": after, "cut_next": 6} for after in (3, 5, 12, 30))),
    _Card("fail", "pd", faults=tuple({"error_next": 5, "error_status": status} for status in (500, 503, 429))),
    _Card("mute", "pd", faults=({"hang": "answer", "hang_next": 2}, {"hang": "body", "hang_next": 2})),
    _Card("refuse", "pd", 1.0, 3.0, ({"refuse": True},)),
    _Card("spoil", "p", 1.0, 3.0, ({"drop_params": True}, {"omit_params": ["remote_port"]})),
    _Card("die_handing_over", "p", 1.5, 3.0, ({"die_after_prefill": True},)),
    _Card("lose_events", "pd", faults=({"lose_events": 1}, {"lose_events": 20, "replay_room": 2})),
    _Card("kill_store", "store", 0.2, 3.0),
    _Card("hang_store", "store", 0.3, 3.0),
    _Card("kill_gateway", "g"),
    _Card("replace_gateway", "g"),
    _Card("reload_gateway", "g"),
)
"""Every kind of blow is dealt before one comes again."""


def storm(seed: int, requests: int, every: int, names: Sequence[str], rate: float) -> list[Blow]:
    """Blows every so many requests, the first and the last tenth of the run left in peace.

    Nobody is hit who is still down, and never more than half of a role. `names` are those of engines and gateways.
    """
    pick = random.Random(f"{seed} storm")
    ill: dict[str, int] = {}
    deck: list[_Card] = []
    blows: list[Blow] = []
    calm = requests // 10
    for at in range(calm, requests - calm, every):
        ill = {name: until for name, until in ill.items() if until > at}
        for _ in DECK:
            deck = deck or pick.sample(DECK, len(DECK))
            card = deck.pop()
            if target := _target(pick, card, names, ill):
                lasts_s = round(pick.uniform(card.shortest_s, card.longest_s), 1)
                orders = dict(pick.choice(card.faults)) if card.faults else {}
                blows.append(Blow(at, card.deed, target, lasts_s, orders))
                down_s = GATEWAY_S if target[0] == "g" else lasts_s + TROUBLE_S
                ill[target] = at + round(down_s * rate)
                break
    return blows


def _target(pick: random.Random, card: _Card, names: Sequence[str], ill: Mapping[str, int]) -> str:
    """Who can be hit; empty if nobody can."""
    if card.whom == "store":
        return "" if "store" in ill else "store"
    free = []
    for role in card.whom:
        peers = [name for name in names if name[0] == role]
        if len([name for name in peers if name in ill]) < len(peers) // 2:
            free += [name for name in peers if name not in ill]
    return pick.choice(free) if free else ""


def one_killed(role: str, requests: int) -> list[Blow]:
    """The first engine of a role is killed after a quarter of the requests and stays away."""
    return [Blow(requests // 4, "kill", f"{role[0]}0", float("inf"))]


HANGS: tuple[dict[str, Any], ...] = ({"hang": "answer"}, {"hang": "body"}, {"hang": "half"}, {"hang": "forever"})


def all_hang(names: Sequence[str]) -> list[Blow]:
    """From the first request on no engine answers to the end, each in its own way."""
    engines = [name for name in names if name[0] in "pd"]
    return [Blow(0, "mute", name, 0.0, HANGS[int(name[1:]) % len(HANGS)]) for name in engines]
