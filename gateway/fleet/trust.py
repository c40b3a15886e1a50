"""Which engines are trusted with which leg: ejection by outcomes and by speed, and the way back. Pure bookkeeping.

An engine that fails, or is far slower than its like, rests; it is asked for a token before it is tried with single
requests, and a role is never left without engines: an engine that is bad is better than none.
"""

import logging
from collections.abc import Callable, Iterable
from statistics import median

import policies.contract as contract
from gateway.fleet.breaker import Phase, panic, spare
from gateway.fleet.engine import Engine, Leg, State

log = logging.getLogger(__name__)

BLAMED = frozenset(("closed", "timeout", "bad_answer", "error", "incomplete", "cut"))
"""Causes that speak against the engine. Not those: 4xx; overload, which placement heeds; a refused connection, after
which the engine is down anyway; a transfer that was late or failed, which may be either side's fault."""

MOST = 0.5
SLOW = 8.0
_TASK_TOKENS, _TASK_BATCH, _TASK_KV = 2000, 8, 16_000
"""What engines are compared by: a prefill, and a decode step."""


class Trust:
    """In all engines of a fleet."""

    def __init__(self, fleet: Iterable[Engine], changed: Callable[[Engine], None]) -> None:
        """`changed` is called when an engine's `offer` may be another one."""
        self.most = MOST
        """Of the engines of a role that answer, this share at most is ejected."""
        self.slow = SLOW
        """So many times slower than the others of its role is too slow."""
        self._fleet = fleet
        self._changed = changed

    def good(self, engine: Engine, leg: Leg) -> None:
        """A leg went well."""
        breaker = engine.breakers[leg]
        breaker.good()
        if engine.tried and breaker.phase is Phase.CLOSED:
            log.info("engine %s is trusted with %s again", engine.name, leg)
            self._changed(engine)

    def bad(self, engine: Engine, leg: Leg, cause: str, why: str) -> None:
        """A leg failed."""
        if cause in BLAMED and engine.breakers[leg].bad():
            self._eject(engine, leg, why or cause)

    def compare(self, engine: Engine) -> None:
        """Is it far slower than the others of its role, and has been for a while? Ask now and then."""
        engine.pace.rest()
        for leg in engine.legs:
            theirs = [_task_s(other, leg) for other in self._peers(engine, leg) if other is not engine]
            usual_s = median(theirs) if theirs else 0.0
            mine_s = _task_s(engine, leg)
            late = bool(theirs) and mine_s > self.slow * usual_s
            if engine.breakers[leg].slow(late):
                self._eject(engine, leg, f"{mine_s / usual_s:.0f} times slower than the other engines")

    def rested(self, engine: Engine) -> list[Leg]:
        """Legs that may be tried again."""
        return [leg for leg in engine.legs if engine.breakers[leg].rested]

    def attempt(self, engine: Engine, leg: Leg, why: str) -> None:
        """A rested engine was asked for a token: let single requests through, or rest again because of `why`."""
        if why:
            engine.breakers[leg].open(why)
        else:
            engine.attempt(leg)
        self._changed(engine)

    def reset(self, engine: Engine) -> None:
        """Another process runs there: nothing is held against it."""
        for breaker in engine.breakers.values():
            breaker.reset()
        self._changed(engine)

    def offer(self, engine: Engine) -> contract.Role | None:
        """What an engine is good for now."""
        engine.tried = any(engine.breakers[leg].phase is Phase.TRIED for leg in engine.legs)
        if engine.state is not State.UP or engine.draining:
            return None
        legs = [leg for leg in engine.legs if engine.breakers[leg].phase is not Phase.OPEN or self._panic(engine, leg)]
        if len(legs) == 2:
            return "both"
        return legs[0] if legs else None

    def _panic(self, engine: Engine, leg: Leg) -> bool:
        peers = self._peers(engine, leg)
        return panic(sum(e.breakers[leg].phase is Phase.OPEN for e in peers), len(peers), self.most)

    def _peers(self, engine: Engine, leg: Leg) -> list[Engine]:
        """All engines that could do this leg for the model, itself among them if it is up."""
        return [
            e
            for e in self._fleet
            if e.model == engine.model and leg in e.legs and e.state is State.UP and not e.draining
        ]

    def _eject(self, engine: Engine, leg: Leg, why: str) -> None:
        """Nothing goes there for a while; unless too many of its kind are out already."""
        if engine.breakers[leg].phase is Phase.CLOSED:
            others = [other for other in self._peers(engine, leg) if other is not engine]
            out = sum(other.breakers[leg].phase is not Phase.CLOSED for other in others)
            if not spare(out, len(others) + 1, self.most):
                engine.spared += 1
                return
        rest_s = engine.breakers[leg].open(why)
        engine.ejections[leg] = engine.ejections.get(leg, 0) + 1
        log.warning("engine %s gets no %s for %.0f s: %s", engine.name, leg, rest_s, why)
        self._changed(engine)


def _task_s(engine: Engine, leg: Leg) -> float:
    """How long the engine takes for a usual piece of work, as far as it was seen."""
    speed = engine.pace.speed
    return speed.prefill_s(_TASK_TOKENS) if leg == "prefill" else speed.decode_s(_TASK_BATCH, _TASK_KV)
