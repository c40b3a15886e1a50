"""Asks the policy for a placement; a policy that fails never fails a request."""

import logging
import time

from gateway.telemetry.metrics import Metrics
from policies.contract import Fleet, Nonsense, Placement, Policy, Request, check
from policies.least_loaded import LeastLoaded

log = logging.getLogger(__name__)

REASONS = 32
"""Different reasons that a policy may give before the rest is counted as `other`."""


class Router:
    """Places requests by a policy, or by `least_loaded` where that raises or returns nonsense."""

    def __init__(self, name: str, policy: Policy, metrics: Metrics) -> None:
        self.name = name
        self._policy = policy
        self._fallback = LeastLoaded()
        self._metrics = metrics
        self._reasons: set[str] = set()

    def place(self, request: Request, fleet: Fleet) -> Placement:
        """Where the request goes. `fleet` has a decoder."""
        start = time.perf_counter()
        try:
            placement = check(self._policy.place(request, fleet), request, fleet)
        except Exception as error:  # whatever a plugin raises is counted and served around
            cause = "nonsense" if isinstance(error, Nonsense) else "raised"
            self._metrics.policy_errors(self.name, cause).inc()
            log.warning("policy %s: %s: %s; placed by least_loaded", self.name, type(error).__name__, error)
            placement = self._fallback.place(request, fleet)
        self._metrics.decision(self.name).observe(time.perf_counter() - start)
        path = "whole" if request.whole else "remote" if placement.prefill else "local"
        self._metrics.placements(self.name, path, self._label(placement.reason)).inc()
        return placement

    def _label(self, reason: str) -> str:
        """A reason as a metric's label, of which there is a bounded number whatever a policy writes."""
        if reason not in self._reasons:
            if len(self._reasons) >= REASONS:
                return "other"
            self._reasons.add(reason)
        return reason
