"""Brings a host from the engines that run to those that are wanted: one after another, each watched for a while.

Where one does not get ready, or the budgets of errors and latency burn, all that was done is taken back.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import reduce
from typing import NamedTuple

from engines.budget import Figures, errs, slows
from engines.control import Say
from engines.fleet import Fleet, Role
from engines.service import Phase, Service
from engines.spec import Spec
from engines.supervision import Supervision
from engines.supervisor import Supervisor

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks at an engine that is watched, or that starts."""


class Stopped(Exception):
    """A change was stopped on its way; the message says at what, and what was taken back."""


class Piece(NamedTuple):
    """An engine as one fleet wants it."""

    spec: Spec
    fleet: Fleet


class Verb(StrEnum):
    START = "start"
    REPLACE = "replace"
    END = "end"


class Step(NamedTuple):
    """What is done at once. `pieces`: what shall run, or what ends."""

    verb: Verb
    pieces: tuple[Piece, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(piece.spec.name for piece in self.pieces)

    def __str__(self) -> str:
        return f"{self.verb} {', '.join(f'{p.spec.name} ({p.spec.role})' for p in self.pieces)}"


def plan(now: Mapping[str, Piece], wanted: Mapping[str, Piece]) -> list[Step]:
    """What has to be done: new engines first, then those that changed, prefill before decode, then those that leave.

    New ones that need a port or a GPU of those that run come last.
    """
    new = [piece for name, piece in wanted.items() if name not in now]
    last = [piece for piece in new if _in_the_way(piece.spec, (other.spec for other in now.values()))]
    first = [piece for piece in new if piece not in last]
    changed = [piece for name, piece in wanted.items() if name in now and now[name].spec != piece.spec]
    gone = [piece for name, piece in now.items() if name not in wanted]
    steps = [Step(Verb.START, tuple(first))]
    steps += [Step(Verb.REPLACE, (piece,)) for piece in sorted(changed, key=prefill_first)]
    steps += [Step(Verb.END, tuple(gone)), Step(Verb.START, tuple(last))]
    return [step for step in steps if step.pieces]


def _in_the_way(spec: Spec, others: Iterable[Spec]) -> bool:
    return any(set(other.ports) & set(spec.ports) or set(other.gpus) & set(spec.gpus) for other in others)


def prefill_first(piece: Piece) -> int:
    return 0 if piece.spec.role is Role.PREFILL else 1


def alone(step: Step) -> str:
    """Why requests may have to wait while a step is taken; empty if there are other engines for them."""
    if step.verb is not Verb.REPLACE:
        return ""
    ((spec, fleet),) = step.pieces
    ours = next(engine for engine in fleet.engines if engine.name == spec.name)
    others = [engine for engine in fleet.engines if engine.model == ours.model and engine is not ours]
    if ours.role.decodes and not any(other.role.decodes for other in others):
        return f"{spec.name} is the only engine that decodes: requests wait for it, or fail (engine_wait_s)"
    return ""


class Outcome(NamedTuple):
    """Where a change stands, by names of engines."""

    done: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    """Taken back."""
    why: str = ""
    """What went wrong; empty: nothing."""


class Rollout:
    """One change. `pieces`: what runs, by name; kept true. `halted`: whether to stop before the next step."""

    def __init__(
        self,
        supervisor: Supervisor,
        pieces: dict[str, Piece],
        rules: Supervision,
        say: Say,
        halted: Callable[[], bool] = lambda: False,
        note: Callable[[tuple[str, ...]], None] = lambda done: None,
    ) -> None:
        """`note` is told what is done after each step, and nothing before it is taken back."""
        self._supervisor = supervisor
        self._pieces = pieces
        self._rules = rules
        self._say = say
        self._halted = halted
        self._note = note
        self._before: dict[Role | None, Figures] = {}

    async def run(self, steps: Sequence[Step]) -> Outcome:
        """Take all steps, or stop on the way."""
        self._before = _by_role(self._supervisor.engines)
        undo: list[Step] = []
        done: list[str] = []
        for at, step in enumerate(steps):
            left = tuple(name for later in steps[at:] for name in later.names)
            if self._halted():
                return Outcome(tuple(done), left)
            undo.append(self._inverse(step))
            self._say(f"[{at + 1}/{len(steps)}] {step}")
            try:
                await self._take(step)
                if step.verb is not Verb.END:
                    await self._watch([self._supervisor.services[name] for name in step.names])
            except Stopped as error:
                return await self._back(undo, str(error), left)
            done += step.names
            self._note(tuple(done))
        return Outcome(tuple(done))

    def _inverse(self, step: Step) -> Step:
        match step.verb:
            case Verb.START:
                return Step(Verb.END, step.pieces)
            case Verb.REPLACE:
                return Step(Verb.REPLACE, tuple(self._pieces[name] for name in step.names))
            case Verb.END:
                return Step(Verb.START, step.pieces)

    async def _back(self, undo: Sequence[Step], why: str, left: tuple[str, ...]) -> Outcome:
        """Take back what was done, the newest first."""
        self._say(f"{why}: taken back")
        self._note(())
        restored: list[str] = []
        for step in reversed(undo):
            self._say(f"back: {step}")
            try:
                await self._take(step)
            except Stopped as error:
                why += f"; and back again: {error}"
            else:
                restored += step.names if step.verb is not Verb.END else ()
        names = ", ".join(restored)
        runs = f"{names} {'runs' if len(restored) == 1 else 'run'} as before" if names else "nothing new is left"
        why += f"; {runs}, and what comes after it was left alone"
        later = tuple(name for name in left if name not in undo[-1].names)
        return Outcome(left=(*(name for step in undo for name in step.names), *later), back=tuple(restored), why=why)

    async def _take(self, step: Step) -> None:
        services = self._supervisor.services
        match step.verb:
            case Verb.START:
                self._pieces |= zip(step.names, step.pieces, strict=True)
                for service in self._supervisor.add((piece.spec for piece in step.pieces), patient=False):
                    await ready(service, self._say)
            case Verb.END:
                for name in step.names:
                    self._say(f"{name}: leaving")
                await self._supervisor.remove(step.names)
                for name in step.names:
                    self._pieces.pop(name, None)
            case Verb.REPLACE:
                for piece in step.pieces:
                    await self._replace(services[piece.spec.name], piece)

    async def _replace(self, service: Service, piece: Piece) -> None:
        self._say(f"{service.name}: {'draining' if service.ready and service.drains else 'ending'}")
        service.replace(piece.spec, piece.fleet.supervisor)
        service.patient = False
        service.restart()
        try:
            await service.reaches(*(phase for phase in Phase if phase not in (Phase.DRAINING, Phase.STOPPING)))
            self._pieces[service.name] = piece
            self._supervisor.tell()
            await ready(service, self._say)
        finally:
            service.patient = True

    async def _watch(self, watched: Sequence[Service]) -> None:
        """See how new engines serve. Raises `Stopped` as soon as a budget burns."""
        if not self._rules.watch_s:
            return
        names = ", ".join(service.name for service in watched)
        self._say(f"{names}: watched for {self._rules.watch_s:g} s")
        lives = {service.name: service.starts for service in watched}
        others = [service for service in self._supervisor.engines if service not in watched]
        theirs = {service.name: _last(service) for service in others}
        before = reduce(Figures.plus, self._before.values(), Figures())
        deadline = time.monotonic() + self._rules.watch_s
        over = False
        while not over:
            await asyncio.sleep(max(0.0, min(LOOK_S, deadline - time.monotonic())))
            over = time.monotonic() >= deadline
            for service in watched:
                if not service.ready or service.starts != lives[service.name]:
                    raise Stopped(service.why or f"{service.name} is {service.phase}")
                if (now := await service.count()) is not None:
                    self._judge(service, now, over)  # all that it counts is new: gateways found it before we did
            grown = [_last(service).since(theirs[service.name]) for service in others]
            if why := errs(reduce(Figures.plus, grown, Figures()), before, self._rules):
                raise Stopped(f"since {names} runs, of the other engines {why}")

    def _judge(self, service: Service, served: Figures, over: bool) -> None:
        before = self._before.get(service.spec.role, Figures())
        if why := errs(served, before, self._rules) or (over and slows(served, before, self._rules)):
            raise Stopped(f"{service.name} serves worse: {why}")
        if over and not served.answers:
            self._say(f"{service.name}: nothing came to it while it was watched")
        elif over:
            self._say(
                f"{service.name}: {served.answers:.0f} answers, {served.errors:.0f} errors; "
                f"TTFT {served.mean_ttft_s * 1e3:.1f} ms ({before.mean_ttft_s * 1e3:.1f} before), "
                f"ITL {served.mean_itl_s * 1e3:.1f} ms ({before.mean_itl_s * 1e3:.1f})"
            )


async def ready(service: Service, say: Say) -> None:
    """Wait until it is, and say at which stage it is meanwhile. Raises `Stopped`."""
    ends = asyncio.ensure_future(service.reaches(Phase.READY, Phase.FAILED, Phase.STOPPED))
    shown = ""
    try:
        while not (await asyncio.wait((ends,), timeout=LOOK_S))[0]:
            if service.stage != shown:
                shown = service.stage
                say(f"{service.name}: {shown}")
    finally:
        ends.cancel()
    if ends.result() is not Phase.READY:
        raise Stopped(service.why or f"{service.name} was stopped")
    say(f"{service.name}: ready after {service.took_s:.0f} s")


def _last(service: Service) -> Figures:
    return service.recent[-1] if service.recent else Figures()


def _by_role(services: Iterable[Service]) -> dict[Role | None, Figures]:
    """What engines did in the last minute, or in all their life if that is too little to judge by."""
    lately: dict[Role | None, Figures] = {}
    ever: dict[Role | None, Figures] = {}
    for service in services:
        role, last = service.spec.role, _last(service)
        first = service.recent[0] if service.recent else last
        lately[role] = lately.get(role, Figures()).plus(last.since(first))
        ever[role] = ever.get(role, Figures()).plus(last)
    return {role: found if found.firsts >= ENOUGH else ever[role] for role, found in lately.items()}


ENOUGH = 30
"""First tokens in the last minute."""
