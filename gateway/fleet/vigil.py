"""What is asked of an engine that answers its health check: does it work, does it do what we think, is it slow?"""

import logging
import time
from typing import Protocol

import httpx

from gateway.fleet.engine import Engine, State
from gateway.fleet.fleet import Fleet
from gateway.fleet.vitals import Drift, Stall, expected, look, silence
from gateway.index.contract import InFlight
from gateway.settings import Settings

log = logging.getLogger(__name__)


class Elsewhere(Protocol):
    """Who knows what other gateways do."""

    async def elsewhere(self, engine: Engine) -> InFlight | None:
        """What they have in flight there."""
        ...


class Vigil:
    """Over one engine; asked each time that it has answered its health check."""

    def __init__(self, fleet: Fleet, engine: Engine, settings: Settings, others: Elsewhere) -> None:
        self._fleet = fleet
        self._engine = engine
        self._settings = settings
        self._others = others
        self._drift, self._stall = Drift(), Stall()
        self._alarmed = self._stuck = False
        self._looked_s = 0.0

    async def check(self, http: httpx.AsyncClient) -> str:
        """Returns why the engine cannot be used all the same; empty if it can."""
        engine, fleet, timeout_s = self._engine, self._fleet, self._settings.probe_timeout_s
        if engine.state is not State.UP:
            if self._stuck and (why := await silence(http, engine.model, timeout_s)):
                return why
            self._stuck = False
            self._stall = Stall()
            return ""
        if rested := fleet.trust.rested(engine):
            why = await silence(http, engine.model, timeout_s)
            for leg in rested:
                fleet.trust.attempt(engine, leg, why)
        fleet.trust.compare(engine)
        if time.monotonic() < self._looked_s + self._settings.vitals_interval_s:
            return ""
        self._looked_s = time.monotonic()
        return await self._look(http)

    async def _look(self, http: httpx.AsyncClient) -> str:
        engine = self._engine
        found = await look(http, engine.rank)
        if found is not None:
            engine.kv_usage = found.kv_usage
            engine.sharing.see(engine.decoding_tokens, found.kv_usage, engine.kv_tokens)
            others = await self._others.elsewhere(engine)
            self._drift.see(found.requests, *expected(engine, () if others is None else (others,)))
            engine.drift, engine.drift_s = self._drift.value, self._drift.lasts_s
            self._alarm(found.requests)
        stalled_s = self._stall.see(found, engine)
        if stalled_s < self._settings.stall_s:
            return ""
        why = await silence(http, engine.model, self._settings.probe_timeout_s)
        self._stuck = bool(why)
        return why and f"no work for {stalled_s:.0f} s, and {why}"

    def _alarm(self, requests: int) -> None:
        """Say once that the engine has what nobody knows of, or the other way round, and once that it is over."""
        engine = self._engine
        alarm = engine.drift_s >= self._settings.drift_alarm_s
        if alarm and not self._alarmed:
            what = (
                f"has {requests} requests that no gateway knows of: is somebody else using it?"
                if requests
                else f"has none of the {-engine.drift} requests that are in flight there"
            )
            log.warning("engine %s %s (for %.0f s)", engine.name, what, engine.drift_s)
        elif self._alarmed and not alarm:
            log.info("engine %s has the requests that it should have again", engine.name)
        self._alarmed = alarm
