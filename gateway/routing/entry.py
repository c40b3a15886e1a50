"""A policy as the router holds it: how it is called, which version of it, and whether it is watched."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from policies.contract import Fleet, Placement, Request
from policies.registry import create, file_of, where

NAMES = 64
"""Different policies that are told apart in metrics; what comes after is counted as `other`."""


class Stamp(NamedTuple):
    """One state of a file."""

    changed_ns: int
    version: str


NO_STAMP = Stamp(0, "")


class Entry:
    """One policy, made and ready to be asked."""

    __slots__ = ("guarded", "label", "name", "path", "place", "stamp")

    def __init__(
        self,
        name: str,
        label: str,
        place: Callable[[Request, Fleet], Placement],
        guarded: bool = False,
        path: Path | None = None,
        stamp: Stamp = NO_STAMP,
    ) -> None:
        self.name = name
        self.label = label
        """Its name in metrics."""
        self.place = place
        self.guarded = guarded
        """Whether it runs under the watchdog: all that are not built in."""
        self.path = path
        """The file of the watched folder that it comes from, if it does."""
        self.stamp = stamp

    @property
    def version(self) -> str:
        return self.stamp.version

    def __repr__(self) -> str:
        return f"{self.name} {self.version}".strip()


class Labels:
    """Names as metrics' labels, of which there is a bounded number however many files are dropped in."""

    def __init__(self, limit: int = NAMES) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= self._limit:
                return "other"
            self._known.add(name)
        return name


def named(name: str, labels: Labels) -> Entry:
    """The policy of that name, module:Class or file, made. Raises `UnknownPolicy`."""
    made = create(name)
    path = file_of(name)
    return Entry(path.stem if path else name, labels.of(path.stem if path else name), made.place, guarded(name))


def guarded(name: str) -> bool:
    """Whether a policy is one that Baton cannot vouch for. Raises `UnknownPolicy`."""
    return not where(name).built_in


def _nobody(request: Request, fleet: Fleet) -> NoReturn:
    raise NotImplementedError


NOBODY = Entry("", "", _nobody)
"""Stands where no policy is."""
