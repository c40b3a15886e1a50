"""What moving KV between two hosts costs: from the fleet file, then fitted from pulls that met no queue."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping

from gateway.fleet.line import Line
from gateway.fleet.pace import EVERY_S
from policies.contract import Link

NOMINAL_BYTES = 100_000
"""KV bytes per token where nobody says; only seconds per token matter, and those are fitted."""

LEG_S = 0.05
"""A second leg and the set-up of its pull, until fitted."""

_GBPS = 400.0


class Links(Mapping[tuple[str, str], Link]):
    """Links by pair of hosts, either way round; any pair has one."""

    def __init__(
        self, known: Mapping[tuple[str, str], Link] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._fitted_s = -EVERY_S
        self._known = {_pair(*hosts): link for hosts, link in (known or {}).items()}
        self._lines: dict[tuple[str, str], Line] = {}
        self._links: dict[tuple[str, str], Link] = {}

    def know(self, known: Mapping[tuple[str, str], Link]) -> None:
        """What somebody says of links; what was fitted already stays."""
        self._known = {_pair(*hosts): link for hosts, link in known.items()}
        for pair in self._links.keys() - self._lines.keys():
            del self._links[pair]

    def __getitem__(self, hosts: tuple[str, str]) -> Link:
        pair = _pair(*hosts)
        link = self._links.get(pair)
        if link is None:
            gbps, latency_us = _GBPS, 0.0
            if (known := self._known.get(pair)) is not None:
                gbps, latency_us = known.gbps, known.latency_us
            link = self._links[pair] = Link(gbps=gbps, latency_us=latency_us + LEG_S * 1e6)
        return link

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._links)

    def __len__(self) -> int:
        return max(1, len(self._links))  # never empty: every pair has a link

    def keep(self, hosts: Collection[str]) -> None:
        """Forget what was found out between any others: pods have a new host's name each time."""
        for found in (self._links, self._lines):
            for pair in [pair for pair in found if not (pair[0] in hosts and pair[1] in hosts)]:
                del found[pair]

    def pulled(self, a: str, b: str, tokens: int, took_s: float) -> None:
        """A decode leg that met no queue had its first byte after `took_s`, with so many tokens to pull."""
        if (now := self._clock()) < self._fitted_s + EVERY_S:
            return
        self._fitted_s = now
        pair = _pair(a, b)
        line = self._lines.get(pair)
        if line is None:
            link = self[a, b]
            per_token = NOMINAL_BYTES * 8e-9 / link.gbps
            line = self._lines[pair] = Line((link.latency_us * 1e-6, per_token), (1.0, 1e4))
        line.learn((1.0, float(tokens)), took_s)
        leg_s, per_token = line.weights
        self._links[pair] = Link(gbps=NOMINAL_BYTES * 8e-9 / max(per_token, 1e-12), latency_us=leg_s * 1e6)


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)
