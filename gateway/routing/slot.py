"""Holds the policy that is asked, lets another take its place, and takes the one before back if that one fails."""

import logging
from pathlib import Path
from typing import NamedTuple

from gateway.routing.entry import NOBODY, Entry, Stamp
from gateway.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PROBATION = 200
"""Decisions in which a new policy may fail `FAULTS` times."""
FAULTS = 5
IN_A_ROW = 3
"""So many failures one after the other are too many at any time."""


class Refusal(NamedTuple):
    """Why a file is not live."""

    stamp: Stamp
    why: str


class Slot:
    """One place for a policy: `live` or `shadow`. Everything happens in the event loop's thread."""

    def __init__(self, use: str, base: Entry, last: Entry, metrics: Metrics) -> None:
        """`base` is the settings' policy; `last` takes its place where that cannot be asked any more."""
        self.use = use
        self.entry = base
        """The policy that is asked now; replaced in one step."""
        self.refused: dict[Path, Refusal] = {}
        """Files that failed, until they are changed or removed."""
        self._base = base
        self._last = last
        self._before: Entry | None = None
        self._metrics = metrics
        self._decided = self._faults = self._row = 0

    def swap(self, entry: Entry) -> None:
        """`entry` is asked from now on."""
        self._before = self.entry if self.entry is not self._base else None
        self._set(entry)
        if entry.path is not None:
            self.refused.pop(entry.path, None)
        self._metrics.policy_swaps(entry.label, self.use).inc()
        log.info("policy %r is %s", entry, self.use)

    def leave(self) -> None:
        """Back to the policy of the settings, because the file of the one that is asked was removed."""
        log.info("policy %r was removed", self.entry)
        self._metrics.policy_swaps(self.entry.label, "removed").inc()
        self._before = None
        self._set(self._base)

    def refuse(self, path: Path, stamp: Stamp, label: str, why: str) -> None:
        """A file failed its examination: whoever is asked now stays."""
        self.refused[path] = Refusal(stamp, why)
        self._metrics.policy_swaps(label, "refused").inc()
        log.error("policy file %s is refused: %s", path, why)

    def judge(self, entry: Entry, cause: str) -> None:
        """Count what became of one decision; empty if it was good. May put the policy before back."""
        if entry is not self.entry or entry is self._last:
            return
        if entry is self._base and self.use == "live" and cause != "stopped":
            cause = ""  # who named it wants it asked; only decisions that stall hurt others
        self._decided += 1
        if not cause:
            self._row = 0
            return
        self._row += 1
        self._faults += self._decided <= PROBATION
        if self._row >= IN_A_ROW or (self._faults > FAULTS and self._decided <= PROBATION):
            self._roll_back(entry, cause)

    def warnings(self) -> list[str]:
        """Which files are not in use, and why."""
        return [f"policy file {path} is not {self.use}: {one.why}" for path, one in self.refused.items()]

    def _roll_back(self, entry: Entry, cause: str) -> None:
        row, faults, decided = self._row, self._faults, self._decided
        self._set(self._last if entry is self._base else self._before or self._base)
        self._before = None
        count = f"{row} failures in a row" if row >= IN_A_ROW else f"{faults} failures in {decided} decisions"
        why = f"{count}, the last: {cause}"
        if entry.path is not None:
            self.refused[entry.path] = Refusal(entry.stamp, f"rolled back after {why}")
        self._metrics.policy_swaps(entry.label, "rolled_back").inc()
        instead = f"{self.entry!r} is {self.use} again" if self.entry is not NOBODY else f"nothing is {self.use}"
        log.error("policy %r is rolled back after %s: %s", entry, why, instead)

    def _set(self, entry: Entry) -> None:
        self.entry = entry
        self._decided = self._faults = self._row = 0
