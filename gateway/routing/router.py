"""Asks the policy for a placement; a policy that fails never fails a request."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gateway.routing.decide import cause_of, decided
from gateway.routing.entry import NOBODY, Entry, Labels, named
from gateway.routing.folder import Folder
from gateway.routing.shadow import Shadow
from gateway.routing.slot import Slot
from gateway.routing.watchdog import Watchdog
from gateway.settings import Settings, SettingsError
from gateway.telemetry.metrics import Metrics
from policies.contract import Fleet, Placement, Request
from policies.least_loaded import LeastLoaded
from policies.registry import built_in

log = logging.getLogger(__name__)

REASONS = 32
"""Different reasons that policies may give before the rest is counted as `other`."""


class Router:
    """Places requests by a policy, or by `least_loaded` where that raises, stalls or returns nonsense.

    Policies that are not built in run under a watchdog and may be replaced while requests come. Raises
    `UnknownPolicy`, `SettingsError` when made.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._labels = Labels()
        self._budget_s = settings.policy_budget_ms * 1e-3
        self._fallback = LeastLoaded()
        self._watchdog = Watchdog()
        base, last = named(settings.policy, self._labels), named("least_loaded", self._labels)
        self._live = Slot("live", base, last, metrics)
        quiet = named(settings.shadow_policy, self._labels) if settings.shadow_policy else NOBODY
        self._quiet = Slot("shadow", quiet, NOBODY, metrics)
        self._shadow = Shadow(self._quiet, settings.shadow_ratio, self._budget_s, self._watchdog, metrics)
        self._wanted: dict[str, Entry] = {}
        self._reasons: set[str] = set()
        self._folders = self._watched(settings.policies_folder)
        self._tasks: list[asyncio.Task[None]] = []
        metrics.show_policies(self.state)

    def place(self, request: Request, fleet: Fleet, wanted: str = "") -> Placement:
        """Where the request goes; as the built-in policy `wanted` says, if one is named. `fleet` has a decoder."""
        entry = self._other(wanted) if wanted else self._live.entry
        cause = ""
        start = time.perf_counter()
        try:
            placement = decided(entry, self._watchdog, request, fleet)
        except Exception as error:  # whatever a plugin raises is counted and served around
            cause = cause_of(error)
            log.warning("policy %r: %s: %s; placed by least_loaded", entry, type(error).__name__, error)
            placement = self._fallback.place(request, fleet)
        took_s = time.perf_counter() - start
        if took_s > self._budget_s and not cause:
            cause = "overrun"
        label = entry.label
        if cause:
            self._metrics.policy_errors(label, cause).inc()
        self._metrics.decision(label).observe(took_s)
        path = "whole" if request.whole else "remote" if placement.prefill else "local"
        self._metrics.placements(label, path, self._label(placement.reason)).inc()
        if placement.saturated:
            self._metrics.saturated(label, placement.saturated).inc()
        if entry.guarded:
            self._live.judge(entry, cause)
        if self._quiet.entry is not NOBODY:
            self._shadow.ask(request, fleet, placement)
        return placement

    def start(self) -> None:
        """Watch the folder, if there is one."""
        self._tasks = [asyncio.create_task(folder.watch()) for folder in self._folders]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._watchdog.close()

    def state(self) -> Iterator[tuple[str, str, str]]:
        """Name, version and use of the policies that are asked."""
        for slot in (self._live, self._quiet):
            if slot.entry is not NOBODY:
                yield slot.entry.label, slot.entry.version, slot.use

    def warnings(self) -> list[str]:
        """Policy files that are not in use, and why."""
        return self._live.warnings() + self._quiet.warnings()

    def _watched(self, path: str) -> list[Folder]:
        if not path:
            return []
        folder = Path(path)
        if not folder.is_dir():
            raise SettingsError(f"policies_folder: {path} is no folder: create it, or leave the setting empty")
        return [Folder(folder, self._live, self._labels), Folder(folder / "shadow", self._quiet, self._labels)]

    def _other(self, name: str) -> Entry:
        """A built-in policy that a request asked for; the live one if there is none of that name."""
        entry = self._wanted.get(name)
        if entry is None:
            if name not in built_in():
                return self._live.entry
            entry = self._wanted[name] = named(name, self._labels)
        return entry

    def _label(self, reason: str) -> str:
        """A reason as a metric's label, of which there is a bounded number whatever a policy writes."""
        if reason not in self._reasons:
            if len(self._reasons) >= REASONS:
                return "other"
            self._reasons.add(reason)
        return reason
