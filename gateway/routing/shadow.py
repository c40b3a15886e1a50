"""A second policy that is asked after the live one and never obeyed: would it have decided the same, what
would have come of it, and how fast?"""

import logging
import math
import random
import time

from gateway.routing.decide import cause_of, decided
from gateway.routing.slot import Slot
from gateway.routing.watchdog import Watchdog
from gateway.telemetry.metrics import Metrics
from policies.contract import Fleet, Placement, Request
from policies.foretell import ttft_s

log = logging.getLogger(__name__)


class Shadow:
    """Asks the policy of a slot, for a share of the requests. One that fails too often is asked no more."""

    def __init__(self, slot: Slot, ratio: float, budget_s: float, watchdog: Watchdog, metrics: Metrics) -> None:
        self._slot = slot
        self._ratio = ratio
        self._budget_s = budget_s
        self._watchdog = watchdog
        self._metrics = metrics
        self._chance = random.Random()

    def ask(self, request: Request, fleet: Fleet, obeyed: Placement) -> None:
        """Count whether the shadow agrees with a placement, and when each would bring the first token. Never raises."""
        if self._ratio < 1 and self._chance.random() >= self._ratio:
            return
        entry, metrics = self._slot.entry, self._metrics
        cause = ""
        start = time.perf_counter()
        try:
            placement = decided(entry, self._watchdog, request, fleet)
        except Exception as error:
            cause = cause_of(error)
            log.warning("shadow policy %r: %s: %s", entry, type(error).__name__, error)
        else:
            for leg, same in (
                ("decode", placement.decode == obeyed.decode),
                ("prefill", placement.prefill == obeyed.prefill),
            ):
                metrics.shadow_agreement(entry.label, leg, "yes" if same else "no").inc()
            done_s, would_s = ttft_s(obeyed, request, fleet), ttft_s(placement, request, fleet)
            if math.isfinite(done_s) and math.isfinite(would_s):
                metrics.shadow_ttft(entry.label, "live").inc(max(0.0, done_s))
                metrics.shadow_ttft(entry.label, "shadow").inc(max(0.0, would_s))
        took_s = time.perf_counter() - start
        if not cause and took_s > self._budget_s:
            cause = "overrun"
        if cause:
            metrics.shadow_errors(entry.label, cause).inc()
        metrics.shadow_decision(entry.label).observe(took_s)
        self._slot.judge(entry, cause)
