"""The gateway's Prometheus metrics; none is touched per chunk.

Names and units follow Prometheus' conventions under one prefix, `baton_`. Labels are bounded: routes, models that an
engine serves (others are `unknown`), engines, and words from this code or from a policy; never a request's id.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.fleet.breaker import Phase
from gateway.fleet.engine import Engine, State
from gateway.fleet.fleet import Fleet
from gateway.telemetry.instruments import Counters, Histograms

_FAST = (0.0025, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
UNKNOWN = "unknown"
"""The model of a request that names none that an engine serves."""
_EJECTED = {Phase.CLOSED: 0.0, Phase.TRIED: 0.5, Phase.OPEN: 1.0}
_PREFILLED = ("token_s", "context_s", "mix")
_SPEED = (*_PREFILLED, "step_s", "sequence_s", "kv_s")
_DECISION = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)


class Metrics:
    """All metrics of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._families: list[Counters | Histograms] = []

        def counter(name: str, text: str, *labels: str) -> Counters:
            family = Counters(self.registry, name, text, labels)
            self._families.append(family)
            return family

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histograms:
            family = Histograms(self.registry, name, text, bounds, labels)
            self._families.append(family)
            return family

        self.requests = counter("baton_requests", "Requests ended.", "route", "model", "outcome")
        self.ttft = histogram(
            "baton_time_to_first_token_seconds", "From the request to the first byte of its stream.", _SLOW, "model"
        )
        self.itl = histogram(
            "baton_inter_token_latency_seconds", "Mean time between the events of one stream.", _FAST, "model"
        )
        self.duration = histogram(
            "baton_request_duration_seconds", "From the request to its end.", _SLOW, "route", "model"
        )
        self.events = counter("baton_stream_events", "Server-sent events relayed.", "model")
        self.decision = histogram("baton_decision_seconds", "Time of one placement.", _DECISION, "policy")
        self.placements = counter("baton_placements", "Placements made.", "policy", "path", "reason")
        self.saturated = counter(
            "baton_saturated",
            "Placements where no engine serves as it should, as the policy says: queues (late), memory (no room).",
            "policy",
            "cause",
        )
        self.policy_errors = counter(
            "baton_policy_errors",
            "Decisions that raised, were nonsense or were stopped (the default placed), or overran their budget.",
            "policy",
            "cause",
        )
        self.policy_swaps = counter(
            "baton_policy_swaps", "Policies: live, shadow, refused, rolled_back, removed.", "policy", "outcome"
        )
        self.shadow_agreement = counter(
            "baton_shadow_agreement", "Whether the shadow chose the engine that was used.", "policy", "leg", "agrees"
        )
        self.shadow_ttft = counter(
            "baton_shadow_predicted_ttft_seconds",
            "Predicted times to first token of the requests that the shadow was asked for, summed: as they were placed "
            "(live), and as it would have placed them (shadow).",
            "policy",
            "of",
        )
        self.shadow_errors = counter("baton_shadow_errors", "Decisions of the shadow that failed.", "policy", "cause")
        self.shadow_decision = histogram(
            "baton_shadow_decision_seconds", "Time of one decision of the shadow.", _DECISION, "policy"
        )
        self.legs = histogram(
            "baton_leg_seconds", "Prefill: until its answer. Decode: until its first byte.", _SLOW, "leg", "engine"
        )
        self.retries = counter("baton_retries", "Legs that failed and what followed.", "leg", "cause")
        self.verdicts = counter("baton_verdicts", "What followed failed legs.", "next")
        self.migrations = counter(
            "baton_migrations",
            "Streams whose engine died: moved, completed, or stayed (ended with an error).",
            "outcome",
        )
        self.retry_budget_spent = counter("baton_retry_budget_spent", "Requests failed for want of retry budget.")
        self.fallback = counter(
            "baton_fallback", "Requests that another fleet served, and why this one did not.", "fleet", "reason"
        )
        self.fallback_failures = counter("baton_fallback_failures", "Requests that it did not serve.", "fleet")
        self.overdue = counter("baton_overdue_requests", "Requests that the watchdog ended, by their step.", "step")
        self.transfers = counter("baton_transfers", "KV transfers by what became of their parameters.", "outcome")
        self.reading = histogram("baton_prompt_seconds", "Time to read one prompt.", _DECISION, "mode")
        self.lookup = histogram("baton_lookup_seconds", "Time of one index lookup.", _DECISION, "model")
        self.lookups = counter("baton_lookups", "Index lookups: hit, miss or unavailable.", "outcome")
        self.prefix_tokens = counter(
            "baton_prefix_tokens",
            "Prompt tokens of prefills: all of them, those predicted cached, those actually cached.",
            "engine",
            "kind",
        )
        Gauge("baton_tasks", "Tasks of the event loop.", registry=self.registry).set_function(_tasks)
        self.reloads = counter("baton_reloads", "Reloads of fleet file, settings, keys: applied, refused.", "outcome")
        self.registrations_refused = counter(
            "baton_registrations_refused", "Registrations of hosts that were not believed.", "reason"
        )
        Info("baton_build", "Version.", registry=self.registry).info({"version": version("baton-gateway")})

    def watch(self, fleet: Fleet) -> None:
        """Show the fleet's state; read when asked for, so that requests pay nothing for it."""
        self._fleet = fleet
        self.registry.register(_FleetState(fleet))
        fleet.members.append(self)

    def joined(self, engine: Engine) -> None:
        """It shows by itself."""

    def left(self, engine: Engine) -> None:
        """What it has done still counts."""

    async def gone(self, engine: Engine) -> None:
        """Labels are those of engines and models that there are."""
        self._prune(engine)

    def _prune(self, gone: Engine | None = None) -> None:
        engines = [engine for engine in (*self._fleet, *self._fleet.leaving) if engine is not gone]
        models = {UNKNOWN}.union(*({engine.model, *engine.served} for engine in engines))
        for family in self._families:
            family.keep("engine", {engine.name for engine in engines})
            family.keep("model", models)

    def show_policies(self, policies: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        """Show which policies are in use: name, version, use."""
        self.registry.register(_PolicyState(policies))

    def show_retry_budget(self, left: Callable[[], float]) -> None:
        """Show how many retries all requests together may have now."""
        gauge = Gauge("baton_retry_budget", "Retries that may be taken now.", registry=self.registry)
        gauge.set_function(left)

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        self._prune()  # adapters come and go with no engine leaving
        return generate_latest(self.registry)


def _tasks() -> float:
    """Grows with what is going on, and must not grow with uptime."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0.0  # asked from outside of the loop


class _PolicyState(Collector):
    def __init__(self, policies: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        self._policies = policies

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["policy", "version", "use"]
        family = GaugeMetricFamily("baton_policy_info", "1 for the policies in use, live and shadow.", labels=labels)
        for one in self._policies():
            family.add_metric(one, 1)
        yield family


class _FleetState(Collector):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        labels = ["engine", "role", "model"]
        up = GaugeMetricFamily("baton_engine_up", "1 if the engine answers.", labels=labels)
        taking = GaugeMetricFamily("baton_engine_taking", "1 if requests are sent to the engine.", labels=labels)
        flight = GaugeMetricFamily("baton_in_flight", "Requests in flight by leg.", labels=["engine", "leg"])
        tokens = GaugeMetricFamily(
            "baton_in_flight_tokens", "Prompt tokens in flight by leg.", labels=["engine", "leg"]
        )
        error = GaugeMetricFamily(
            "baton_prediction_error",
            "How far predicted times were off lately, as a share; by kind of prediction.",
            labels=["engine", "kind"],
        )
        speed = GaugeMetricFamily(
            "baton_engine_fitted_seconds",
            "Fitted speed: of a prefilled token, of each token before it (context), of a decode step, of each sequence "
            "and each KV token in it; how many times longer prefills take beside decodes (mix).",
            labels=["engine", "of"],
        )
        late = GaugeMetricFamily(
            "baton_engine_lateness", "How many times longer than fitted prefills take now.", labels=["engine"]
        )
        breaker = GaugeMetricFamily(
            "baton_engine_ejected",
            "1 while the engine gets none of a leg, 0.5 while it is tried.",
            labels=["engine", "leg"],
        )
        ejections = CounterMetricFamily("baton_engine_ejections", "How often that began.", labels=["engine", "leg"])
        spared = CounterMetricFamily(
            "baton_engine_spared", "Ejections put off because too many engines are out.", labels=["engine"]
        )
        usage = GaugeMetricFamily("baton_engine_kv_usage", "Share of its KV blocks in use.", labels=["engine"])
        drift = GaugeMetricFamily(
            "baton_engine_drift", "Requests the engine has beyond those gateways know of.", labels=["engine"]
        )
        odd = GaugeMetricFamily(
            "baton_engine_drift_seconds",
            "How long it has had requests that nobody knows of, or none of those in flight there.",
            labels=["engine"],
        )
        connections = GaugeMetricFamily("baton_connections", "Connections by state.", labels=["engine", "state"])
        leaving = [engine for engine in self._fleet.leaving if engine.name not in self._fleet.engines]
        for engine in (*self._fleet, *leaving):
            up.add_metric([engine.name, engine.role, engine.model], float(engine.state is State.UP))
            taking.add_metric([engine.name, engine.role, engine.model], float(engine.offers is not None))
            flight.add_metric([engine.name, "prefill"], engine.prefill_requests)
            flight.add_metric([engine.name, "decode"], engine.decode_requests)
            tokens.add_metric([engine.name, "prefill"], engine.prefill_tokens)
            tokens.add_metric([engine.name, "decode"], engine.decode_tokens)
            connections.add_metric([engine.name, "idle"], engine.pool.idle)
            connections.add_metric([engine.name, "busy"], engine.pool.busy)
            for kind, share in engine.pace.error.items():
                error.add_metric([engine.name, kind], share)
            late.add_metric([engine.name], engine.pace.lateness)
            for part in _SPEED if engine.role.decodes else _PREFILLED:
                speed.add_metric([engine.name, part.removesuffix("_s")], getattr(engine.pace.base, part))
            for leg in engine.legs:
                breaker.add_metric([engine.name, leg], _EJECTED[engine.breakers[leg].phase])
                ejections.add_metric([engine.name, leg], engine.ejections.get(leg, 0))
            spared.add_metric([engine.name], engine.spared)
            usage.add_metric([engine.name], engine.kv_usage)
            drift.add_metric([engine.name], engine.drift)
            odd.add_metric([engine.name], engine.drift_s)
        yield from (up, taking, flight, tokens, connections, error, speed, late)
        yield from (breaker, ejections, spared, usage, drift, odd)
