"""What a run amounted to: one verdict a request, and what stayed behind."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from load.chaos.judge import UNREADABLE, Verdict
from load.chaos.traffic import Ask

ALLOWED_ERRORS = 0.001
"""Share of requests that may end with an error that the client can parse."""

COUNTS = ("requests", "wrong", "lost", "doubled", "hung", "client_errors", "leaked", "severed", "left", "retried")

_EXAMPLES = 20


@dataclass
class Tally:
    """Counts of requests, each under one verdict."""

    requests: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0
    doubled: int = 0
    hung: int = 0
    client_errors: int = 0
    severed: int = 0
    """Streams in the middle of which the gateway itself was killed: nobody was there any more to say a word."""
    leaked: int = 0
    left: int = 0
    """Clients that went away on purpose; their answers were right as far as they came."""
    retried: int = 0
    """Requests that the client sent again because no byte of an answer came: a gateway was down."""
    causes: Counter[str] = field(default_factory=Counter)
    """Client errors by their code."""
    examples: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    """What was left behind, in words."""
    took_s: list[float] = field(default_factory=list, repr=False)

    def enter(self, ask: Ask, verdict: Verdict, took_s: float, left: bool = False) -> None:
        """One more request has ended."""
        self.requests += 1
        self.took_s.append(took_s)
        self.left += left and verdict.kind == "right"
        match verdict.kind:
            case "error":
                self.client_errors += 1
                self.causes[verdict.why] += 1
            case kind:
                setattr(self, kind, getattr(self, kind) + 1)
        if verdict.kind not in ("right", "severed"):
            self.example(f"request {ask.number}: {verdict.kind}: {verdict.why}")

    def hangs(self, ask: Ask, took_s: float) -> None:
        """A request did not end in time."""
        self.requests += 1
        self.hung += 1
        self.example(f"request {ask.number}: no end after {took_s:.1f} s")

    def example(self, text: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)

    def leak(self, what: str, count: int = 1) -> None:
        """Something stayed behind that should be gone."""
        self.leaked += count
        self.leaks.append(what)

    @property
    def failed(self) -> int:
        """Requests of which nothing right came in the end, whoever's fault it was."""
        return self.wrong + self.lost + self.doubled + self.hung + self.client_errors + self.severed

    def good(self, errors: float = ALLOWED_ERRORS) -> bool:
        """Whether this is what it must be, with this share of client errors."""
        never = self.wrong + self.lost + self.doubled + self.hung + self.leaked
        unreadable = [cause for cause in self.causes if cause.startswith(UNREADABLE)]
        return not never and not unreadable and self.client_errors <= errors * self.requests

    def seconds(self, percent: int) -> float:
        """How long requests took."""
        return statistics.quantiles(self.took_s, n=100)[percent - 1] if len(self.took_s) > 1 else 0.0

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        names = (
            "requests",
            "wrong",
            "lost",
            "doubled",
            "hung",
            "client_errors",
            "leaked",
            "severed",
            "left",
            "retried",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "causes": dict(self.causes),
            "p50_s": round(self.seconds(50), 3),
            "p99_s": round(self.seconds(99), 3),
            "examples": self.examples,
            "leaks": self.leaks,
        }
