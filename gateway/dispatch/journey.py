"""The journey of a request from its placement to its answer: place, book, prefill, decode, relay, learn.

The one place where something is tried again; what follows a failure is decided in `verdict`.
"""

import asyncio
import logging
import time
from typing import NamedTuple, Protocol

from gateway.connector.lease import Transfer
from gateway.dispatch import ids, legs, migrate
from gateway.dispatch.budget import RetryBudget
from gateway.dispatch.course import Course
from gateway.dispatch.exchange import Exchange, Headers
from gateway.dispatch.failure import LegFailed, Reply
from gateway.dispatch.legs import Opened
from gateway.dispatch.migrate import Stays
from gateway.dispatch.relay import Cut, Tally, relay
from gateway.dispatch.trail import Trail
from gateway.dispatch.verdict import SPENT, Failure, Leg, Next
from gateway.dispatch.watchdog import Overdue, Watchdog
from gateway.errors import ApiError, Overloaded, saturated, unavailable
from gateway.fleet.booking import Booking
from gateway.fleet.engine import Engine
from gateway.fleet.fleet import OK, Fleet
from gateway.index.lookup import Lookup
from gateway.prompt.body import flag
from gateway.routing.router import Router
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import Span
from policies.contract import Fleet as Snapshot

log = logging.getLogger(__name__)

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_NOT_RELAYED = HOP_BY_HOP | {b"content-length", b"date", b"server", b"x-request-id"}


_UNTOLD = ("refused", "stale", "closed", "timeout", "bad_answer", "late")
"""Failures of a decode engine after which it may never tell the prefill engine that it does not want the KV."""


class Client(Protocol):
    """Where the answer goes."""

    def start(self, status: int, headers: Headers) -> None: ...
    def write(self, piece: bytes) -> bool: ...
    async def drain(self) -> None: ...
    def end(self) -> None: ...
    def reply(self, status: int, headers: Headers, body: bytes) -> None: ...


class Kept(NamedTuple):
    """KV that waits on a prefill engine for a decode engine."""

    transfer: Transfer
    source: Engine


class Dispatcher:
    """Carries out requests on a fleet."""

    def __init__(self, fleet: Fleet, lookup: Lookup, router: Router, metrics: Metrics, settings: Settings) -> None:
        self._fleet = fleet
        self._lookup = lookup
        self._router = router
        self._metrics = metrics
        self._settings = settings
        self._budget = RetryBudget(settings.retry_share, settings.retry_floor)
        self._watchdog = Watchdog(metrics)
        metrics.show_retry_budget(lambda: self._budget.left(time.perf_counter()))

    async def serve(self, x: Exchange, client: Client) -> int:
        """Answer one request; returns the status sent. Raises `ApiError` before anything was sent, `Cut` after."""
        settings = self._settings
        x.deadline = x.started + settings.request_timeout_s
        self._budget.seen(x.started)
        course = Course(self._budget, x.deadline, settings.attempts, len(self._fleet.engines), settings.migrations)
        if x.stream:
            x.stays = migrate.stays(x.api, x.fields) if settings.migrations else "migrations are off"
        try:
            with self._watchdog.watch(x):
                return await self._run(x, course, client)
        except Overdue:
            text = f"The request took longer than {settings.request_timeout_s:g} s."
            raise ApiError(504, text, kind="server_error", code="request_timeout") from None

    async def _run(self, x: Exchange, course: Course, client: Client) -> int:
        """Attempts, one after the other, until one answers or nothing more is to be tried."""
        failure: LegFailed | None = None
        cut: Cut | None = None
        kept: Kept | None = None
        while True:
            x.step = "wait"
            snapshot = await self._snapshot(x, course, failure)
            if snapshot is None:
                return self._give_up(x, failure, client)
            prefill, decode = self._place(x, snapshot)
            if kept is not None and (kept.source is decode or (x.ids is not None and not decode.takes_ids)):
                prefill, kept = None, None  # it has the KV itself, or would read the prompt by itself
            elif kept is not None:
                prefill = kept.source
            new = self._uncached(x, prefill or decode)
            with Booking(prefill, decode, new, x.request.prompt_tokens) as booking:
                self._fleet.traffic(decode.model).arrived(booking.work_s)
                transfer = None
                try:
                    if kept is None:
                        self._prepare(x, prefill, decode)
                        transfer = await self._prefill(x, prefill, decode, booking)
                    else:
                        booking.prefilled()
                        transfer = kept.transfer
                    return await self._decode(x, decode, transfer, prefill, client, booking)
                except LegFailed as failed:
                    failure = failed
                    if prefill is not None:
                        self._left(x, failed, prefill, transfer)
                except Cut as broken:
                    cut = broken
            if cut is not None:
                if await self._ended(x, course, cut, decode, client):
                    return 200
                failure = cut = kept = None
                continue
            assert failure is not None
            usable = transfer is not None and transfer.fresh(asyncio.get_running_loop().time())
            follows = self._learn(x, course, failure, prefill, decode, usable)
            if follows is Next.FAIL:
                return self._give_up(x, failure, client)
            kept = Kept(transfer, prefill) if follows is Next.KEEP and transfer and prefill else None

    async def _snapshot(self, x: Exchange, course: Course, failure: LegFailed | None) -> Snapshot | None:
        """The engines to choose from. None: all there are were tried.

        Where there is none at all, or the last ones went down just now, it waits for one.
        """
        model = x.request.model
        snapshot = self._fleet.snapshot(model, x.sight, course.avoid)
        if snapshot is None and (failure is None or failure.cause == "refused"):
            wait_s = 0.0 if x.elsewhere else min(self._settings.engine_wait_s, x.left_s())
            try:
                async with asyncio.timeout(wait_s):
                    while snapshot is None:
                        await self._fleet.changed()
                        snapshot = self._fleet.snapshot(model, x.sight, course.avoid)
            except TimeoutError:
                if failure is not None:
                    return None
                raise unavailable(f"No engine can serve `{model}` now.") from None
        if snapshot is None:
            return None
        if self._settings.require_prefill and not (x.request.whole or snapshot.collocated or snapshot.prefillers):
            raise unavailable(f"No prefill engine for `{model}` is up (setting require_prefill).", "no_prefill_engine")
        return snapshot

    def _place(self, x: Exchange, snapshot: Snapshot) -> tuple[Engine | None, Engine]:
        """Ask the policy; returns the engines that prefill, if another does, and decode."""
        placed = time.perf_counter()
        x.placement = placement = self._router.place(x.request, snapshot, x.policy)
        x.times["route"] = time.perf_counter() - placed
        if placement.saturated and not x.attempts and self._settings.refuse_saturated:
            raise saturated(placement.saturated)
        x.attempts += 1
        prefill = self._fleet.engines[placement.prefill] if placement.prefill else None
        return prefill, self._fleet.engines[placement.decode]

    def _uncached(self, x: Exchange, engine: Engine) -> int:
        """Tokens that `engine` will have to prefill."""
        return max(1, x.request.prompt_tokens - x.sight.cached(engine.url))

    def _prepare(self, x: Exchange, prefill: Engine | None, decode: Engine) -> None:
        """What else follows from a placement: who will hold the prompt, and which ids go along."""
        engines = [decode] if prefill is None else [prefill, decode]
        if x.explain:
            each = zip((b"decode", b"prefill"), engines[::-1], strict=False)
            x.predicted = {leg: x.sight.exact(engine.url) for leg, engine in each}
        self._lookup.placed(x.sight, engines, x.session)
        x.ids, x.ask_ids = None, False
        x.ids_count = x.request.prompt_tokens
        if x.given is not None:
            x.ids = ids.as_json(x.given)
            return
        if prefill is not None:
            x.ids, x.ask_ids = ids.plan(x.sight, x.api, x.fields, prefill, decode)
        x.trail = None
        if not x.stays and (decode.takes_ids or not decode.enrolled):  # one that has just come up will, most likely
            x.trail = Trail(x.api, flag(x.fields, "return_token_ids"), migrate.wants_usage(x.fields))

    async def _prefill(self, x: Exchange, engine: Engine | None, decode: Engine, booking: Booking) -> Transfer | None:
        if engine is None:
            return None
        x.step = "prefill"
        transfer, x.cached_tokens, returned = await legs.prefill(x, engine, self._settings)
        booking.prefilled()
        took_s = x.times["prefill"]
        self._metrics.legs("prefill", engine.name).observe(took_s)
        self._fleet.observe(engine, "prefill", OK)
        cached = x.cached_tokens or 0
        new = transfer.prompt_tokens - cached
        engine.pace.prefilled(new, cached, booking.waits_s, took_s, booking.beside, booking.alone)
        self._lookup.prefilled(x.sight, engine, transfer.prompt_tokens, x.cached_tokens, returned)
        if returned is not None and ids.fit(x.api, x.fields, decode):
            x.ids = returned
        return transfer

    async def _decode(
        self,
        x: Exchange,
        engine: Engine,
        transfer: Transfer | None,
        source: Engine | None,
        client: Client,
        booking: Booking,
    ) -> int:
        x.step = "decode"
        span = x.span.leg("decode", engine.name)
        outcome = "cancelled"
        try:
            opened = await legs.decode(x, engine, transfer, source, self._settings, span)
            booking.prefilled()
            took_s = x.times["decode"]
            self._metrics.legs("decode", engine.name).observe(took_s)
            self._fleet.observe(engine, "decode", OK)
            if isinstance(opened, Opened):
                self._began(x, engine, source, took_s, booking)
            if transfer is not None:
                self._metrics.transfers("used").inc()
                span.event("kv_transfer", {"baton.prompt_tokens": transfer.prompt_tokens})
            status = await self._answer(x, opened, client, span, engine)
            outcome = ""
            return status
        except LegFailed as failed:
            outcome = failed.cause
            raise
        except Cut as cut:
            outcome = "cut"
            self._fleet.observe(engine, "decode", outcome, str(cut))
            raise
        finally:
            span.end(error=outcome)

    def _began(self, x: Exchange, engine: Engine, source: Engine | None, took_s: float, booking: Booking) -> None:
        """A stream has begun: what its first byte took tells of the engine, or of the way to it."""
        new = self._uncached(x, engine)
        if source is None:
            cached = x.request.prompt_tokens - new
            engine.pace.prefilled(new, cached, booking.waits_s, took_s, booking.beside, booking.alone)
        elif not engine.prefill_requests:
            self._fleet.links.pulled(source.host, engine.host, new, took_s)

    async def _answer(self, x: Exchange, opened: Opened | Reply, client: Client, span: Span, engine: Engine) -> int:
        """Pass an answer to the client."""
        if isinstance(opened, Reply):
            return _reply(x, opened, client)
        answer = opened.answer
        tally = Tally()
        spent_s = engine.backlog.spent_s(time.monotonic())
        try:
            model = x.request.model
            ttft_s = tally.first_s - x.started
            span.event("first_token")
            x.step = "stream"
            if not x.begun:
                self._metrics.ttft(model).observe(ttft_s)
                client.start(answer.status, [*relayed(answer.headers), *x.facts()])
            await relay(answer, opened.first, client, self._settings, tally, x.trail)
            client.end()
        finally:
            answer.close()
            self._metrics.events(model).inc(tally.events)
        if (gap_s := tally.gap_s) is not None:
            self._metrics.itl(model).observe(gap_s)
            stalled_s = (engine.backlog.spent_s(time.monotonic()) - spent_s) / (tally.events - 1)
            engine.pace.streamed(engine.decoding, engine.decoding_tokens, gap_s, stalled_s)
        if not x.begun:
            self._fleet.traffic(engine.model).ended(ttft_s, gap_s)
        return answer.status

    def _left(self, x: Exchange, failed: LegFailed, prefill: Engine, transfer: Transfer | None) -> None:
        """A hand-over failed: if no decode engine will say so, the KV stays until the lease ends."""
        now = asyncio.get_running_loop().time()
        if transfer is None:
            if failed.cause == "incomplete":
                prefill.leftover.add(x.request.prompt_tokens, now + prefill.lease_s)
        elif not transfer.fresh(now) and (not transfer.sent or failed.cause in _UNTOLD):
            prefill.leftover.add(transfer.prompt_tokens, transfer.ends_s)

    async def _ended(self, x: Exchange, course: Course, cut: Cut, decode: Engine, client: Client) -> bool:
        """A stream broke. True: nothing was missing but its end. False: it is to go on elsewhere. Raises `Cut`."""
        trail = x.trail
        if trail is not None and not trail.lost and (trail.finished or trail.done):
            if not trail.done:
                client.write(trail.closing())
            client.end()
            self._metrics.migrations("completed").inc()
            return True
        others = self._fleet.snapshot(x.request.model, x.sight, course.avoid | {decode.name}) is not None
        what = Failure(Leg.DECODE, cut.cause, lasting=x.lasting, begun=True)
        verdict = course.after(
            what, time.perf_counter(), None, decode.name, others, exact=trail is not None and not trail.lost
        )
        self._metrics.verdicts(verdict.next.name.lower()).inc()
        why = verdict.why
        if verdict.next is Next.MIGRATE and trail is not None:
            try:
                made = await self._move(x, course, trail)
            except Stays as stays:
                why = str(stays)
            else:
                self._metrics.migrations("moved").inc()
                log.warning("request %s: %s; %d tokens go on elsewhere", x.engine_id.decode(), cut, made)
                return False
        self._metrics.migrations("stayed").inc()
        log.warning("request %s: the stream ends: %s", x.engine_id.decode(), x.stays or (trail and trail.lost) or why)
        raise cut

    async def _move(self, x: Exchange, course: Course, trail: Trail) -> int:
        """Make of `x` the request for the rest of its stream; returns the tokens that are there. Raises `Stays`."""
        course.avoid |= {engine.name for engine in self._fleet if not engine.takes_ids}
        snapshot = self._fleet.snapshot(x.request.model, x.sight, course.avoid)
        if snapshot is None:
            raise Stays("no other engine takes token ids")
        reader = self._fleet.engines[snapshot.decoders[0].name]
        made, seam = await migrate.prove(x, trail, reader, min(self._settings.health_timeout_s, x.left_s()))
        trail.go_on(made, seam)
        prompt = migrate.rest(x, trail, len(made))
        x.sight = await self._lookup.again(x.sight, x.request.model, prompt)
        return len(made)

    def _learn(
        self, x: Exchange, course: Course, failed: LegFailed, prefill: Engine | None, decode: Engine, usable: bool
    ) -> Next:
        """Count a failure and tell who should know; returns what follows. `usable`: the transfer's parameters are."""
        leg, cause = failed.leg, failed.cause
        self._metrics.retries(leg.name.lower(), cause).inc()
        if cause == "late":
            x.reads_apart()
        if leg is Leg.DECODE and prefill is not None:
            self._metrics.transfers("kept" if usable else cause).inc()
        at = prefill if leg is Leg.PREFILL and prefill is not None else decode
        self._fleet.observe(at, "decode" if at is decode else "prefill", cause, str(failed))
        what = Failure(leg, cause, remote=prefill is not None, lasting=x.lasting)
        name = prefill.name if prefill is not None else None
        others = self._fleet.snapshot(x.request.model, x.sight, course.avoid | {decode.name}) is not None
        verdict = course.after(what, time.perf_counter(), name, decode.name, others, usable)
        if course.whole:
            x.stays_whole(course.whole)
        if verdict.why is SPENT:
            self._metrics.retry_budget_spent().inc()
        self._metrics.verdicts(verdict.next.name.lower()).inc()
        level = logging.DEBUG if cause == "rejected" else logging.WARNING  # its client is told
        log.log(level, "request %s: %s failed: %s; %s", x.engine_id.decode(), leg.name.lower(), failed, verdict.why)
        return verdict.next

    def _give_up(self, x: Exchange, failure: LegFailed | None, client: Client) -> int:
        """Pass on an engine's own last word, or say in ours what went wrong."""
        if failure is None or failure.cause == "refused":
            raise unavailable("No engine could be reached.", "engine_unreachable")
        if x.begun:
            raise Cut(str(failure), failure.cause)
        if failure.cause == "overloaded" and x.elsewhere and failure.reply is not None:
            said = failure.reply
            raise Overloaded(said.status, [*relayed(said.headers), *x.facts()], said.body)
        if failure.reply is not None:
            return _reply(x, failure.reply, client)
        timeout = failure.cause in ("timeout", "late")
        what = "did not answer in time" if timeout else "failed before it answered"
        raise ApiError(
            504 if timeout else 502, f"The engine {what}.", kind="server_error", code=f"engine_{failure.cause}"
        )


def _reply(x: Exchange, reply: Reply, client: Client) -> int:
    """Pass a complete answer on; returns its status."""
    client.reply(reply.status, [*relayed(reply.headers), *x.facts()], reply.body)
    return reply.status


def relayed(headers: Headers) -> Headers:
    """An engine's headers without those that belong to its own connection."""
    return [(name, value) for name, value in headers if name not in _NOT_RELAYED]
