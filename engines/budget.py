"""Whether a new engine serves worse than those before it: judged by what engines count of themselves. Asks nothing."""

from typing import NamedTuple, Self

from engines.supervision import Supervision
from engines.surface import FINISHED, ITL, REQUESTS, TTFT, total

LEAST_ERRORS = 3
LEAST = 8
"""So many answers are needed to speak of their mean; the mean of fewer must be as much further off."""


class Figures(NamedTuple):
    """Counters of one engine, or of several, or what they grew by. Times are sums, seconds."""

    answers: float = 0.0
    errors: float = 0.0
    firsts: float = 0.0
    ttft_s: float = 0.0
    tokens: float = 0.0
    itl_s: float = 0.0

    @classmethod
    def of(cls, page: str) -> Self:
        """Read an engine's `/metrics`."""

        def value(name: str, **labels: str) -> float:
            return total(page, name, labels) or 0.0

        return cls(
            answers=value(REQUESTS, method="POST"),
            # A stream that breaks was answered with 200, and what fails before it reaches the engine never finishes.
            errors=max(value(REQUESTS, method="POST", status="5xx"), value(FINISHED, finished_reason="error")),
            firsts=value(f"{TTFT}_count"),
            ttft_s=value(f"{TTFT}_sum"),
            tokens=value(f"{ITL}_count"),
            itl_s=value(f"{ITL}_sum"),
        )

    def plus(self, other: "Figures") -> "Figures":
        return Figures(*(a + b for a, b in zip(self, other, strict=True)))

    def since(self, before: "Figures") -> "Figures":
        """What was added; all of it if these are another process's counters."""
        grown = Figures(*(a - b for a, b in zip(self, before, strict=True)))
        return self if min(grown) < 0 else grown

    @property
    def error_share(self) -> float:
        return self.errors / self.answers if self.answers else 0.0

    @property
    def mean_ttft_s(self) -> float:
        return self.ttft_s / self.firsts if self.firsts else 0.0

    @property
    def mean_itl_s(self) -> float:
        return self.itl_s / self.tokens if self.tokens else 0.0


def errs(now: Figures, before: Figures, rules: Supervision) -> str:
    """Why the budget of errors burns; empty while it does not."""
    if now.errors < LEAST_ERRORS or now.error_share <= before.error_share + rules.watch_errors:
        return ""
    return (
        f"{now.errors:.0f} of {now.answers:.0f} answers were errors, {before.error_share:.1%} before "
        f"(supervisor.watch_errors {rules.watch_errors:g})"
    )


def slows(now: Figures, before: Figures, rules: Supervision) -> str:
    """Why the budget of latency burns; empty if it does not, or if too little was seen before.

    What is slow gets few requests, so few have to be enough.
    """
    each = (
        ("TTFT", now.firsts, before.firsts, now.mean_ttft_s, before.mean_ttft_s, rules.watch_ttft, "watch_ttft"),
        ("ITL", now.tokens, before.tokens, now.mean_itl_s, before.mean_itl_s, rules.watch_itl, "watch_itl"),
    )
    for what, seen, seen_before, mean_s, before_s, times, key in each:
        if seen_before >= LEAST and mean_s > before_s * times * max(1.0, LEAST / max(seen, 1.0)) > 0:
            return (
                f"its {what} is {mean_s * 1e3:.1f} ms, {mean_s / before_s:.1f} times what it was "
                f"({before_s * 1e3:.1f} ms; supervisor.{key} {times:g})"
            )
    return ""
