"""The two legs of a request: prefill, then decode."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from gateway.connector import nixl_pull
from gateway.connector.lease import Stale, Transfer
from gateway.connector.nixl_pull import Incomplete, Prefilled
from gateway.dispatch import opening
from gateway.dispatch.exchange import Exchange
from gateway.dispatch.expiry import Expired, Expiry
from gateway.dispatch.failure import LegFailed, Reply, cause_of_status, failed
from gateway.dispatch.verdict import Leg
from gateway.fleet.engine import Engine
from gateway.settings import Settings
from gateway.telemetry.tracing import Span
from gateway.wire.answer import Answer
from gateway.wire.errors import TimedOut, WireError


@dataclass(slots=True)
class Opened:
    """A stream whose first piece is here; nothing of it was sent to the client yet."""

    answer: Answer
    first: bytes


async def prefill(x: Exchange, engine: Engine, settings: Settings) -> Prefilled:
    """Leg 1: compute the prompt's KV on `engine`. Raises `LegFailed`."""
    span = x.span.leg("prefill", engine.name)
    start = time.perf_counter()
    try:
        body = nixl_pull.prefill_body(x.api, x.fields, x.ids, x.ask_ids)
        until_s = min(settings.prefill_timeout_s, x.left_s())
        reply = await _call(x, Leg.PREFILL, engine, body, settings, until_s, span, remote=False)
        if reply.status != 200:
            raise LegFailed(Leg.PREFILL, engine.name, cause_of_status(reply.status), f"status {reply.status}")
        now = asyncio.get_running_loop().time()
        try:
            expected = x.ids_count if x.ids is not None else None
            prefilled = nixl_pull.receive(reply.body, now, engine.lease_s, settings.lease_margin_s, expected)
        except Incomplete as error:
            raise LegFailed(Leg.PREFILL, engine.name, "incomplete", str(error)) from None
    except LegFailed as failure:
        span.end(error=failure.cause)
        raise
    except asyncio.CancelledError:
        span.end(error="cancelled")
        raise
    x.times["prefill"] = time.perf_counter() - start
    x.prompt_tokens = prefilled.transfer.prompt_tokens
    span.end({"gen_ai.usage.input_tokens": x.prompt_tokens})
    return prefilled


async def decode(
    x: Exchange, engine: Engine, transfer: Transfer | None, source: Engine | None, settings: Settings, span: Span
) -> Opened | Reply:
    """Leg 2, or the only one: returns when the answer has begun (streamed) or is complete. Raises `LegFailed`.

    `source` is the engine that `transfer` comes from. Below 500 a reply is the engine's verdict on the client's own
    body, whatever it says.
    """
    start = time.perf_counter()
    now = asyncio.get_running_loop().time()
    first_byte_s = min(settings.first_byte_timeout_s, x.left_s())
    leased = False
    if transfer is None:
        body = nixl_pull.whole_body(x.api, x.fields, x.ids, x.trail is not None)
    else:
        try:
            body = nixl_pull.decode_body(x.api, x.fields, transfer.take(now), x.ids, x.trail is not None)
        except Stale:
            raise LegFailed(Leg.DECODE, engine.name, "late", "the lease ended between the legs") from None
    if transfer is not None and x.stream:
        leased = transfer.left_s(now) < first_byte_s
        first_byte_s = min(first_byte_s, transfer.left_s(now))
    try:
        if x.stream:
            opened = await _open(x, engine, body, settings, first_byte_s, transfer is not None, leased, span)
        elif transfer is None or source is None:
            opened = await _call(x, Leg.DECODE, engine, body, settings, first_byte_s, span, remote=False)
        else:
            left_s = transfer.left_s(now)
            opened = await _fetching(x, engine, source, body, settings, first_byte_s, left_s, span)
    except LegFailed as failure:
        if failure.unsent and transfer is not None:
            transfer.unsent()
        raise
    if isinstance(opened, Reply) and (opened.status >= 500 or opened.status == 429):
        cause = cause_of_status(opened.status)
        raise LegFailed(Leg.DECODE, engine.name, cause, f"status {opened.status}", opened)
    x.times["decode"] = time.perf_counter() - start
    return opened


def _sent(
    x: Exchange, engine: Engine, body: bytes, first_byte_s: float, span: Span, remote: bool
) -> Coroutine[Any, Any, Answer]:
    """A leg's request, on its way; one that carries transfer parameters (`remote`) is sent once at most."""
    return engine.pool.request(
        "POST",
        x.api.target,
        x.engine_headers(span, engine),
        body,
        first_byte_s=first_byte_s,
        twice=not (remote or x.lasting),
    )


async def _call(
    x: Exchange,
    leg: Leg,
    engine: Engine,
    body: bytes,
    settings: Settings,
    first_byte_s: float,
    span: Span,
    remote: bool,
) -> Reply:
    """One request with its whole answer."""
    try:
        answer = await _sent(x, engine, body, first_byte_s, span, remote)
        try:
            data = await answer.read(settings.max_answer_bytes, settings.idle_timeout_s)
        finally:
            answer.close()
    except WireError as error:
        raise failed(leg, engine.name, error) from error
    return Reply(answer.status, answer.headers, data)


async def _fetching(
    x: Exchange,
    engine: Engine,
    source: Engine,
    body: bytes,
    settings: Settings,
    first_byte_s: float,
    left_s: float,
    span: Span,
) -> Reply:
    """A whole answer of an engine that first fetches KV from `source`, which keeps it safely for `left_s`."""
    try:
        with Expiry(source, left_s, settings.health_timeout_s) as expiry:
            reply = await _call(x, Leg.DECODE, engine, body, settings, first_byte_s, span, remote=True)
            if await expiry.in_time():
                return reply
    except Expired:
        pass
    raise LegFailed(Leg.DECODE, engine.name, "late", "blocks expired on the prefill engine meanwhile")


async def _open(
    x: Exchange,
    engine: Engine,
    body: bytes,
    settings: Settings,
    first_byte_s: float,
    remote: bool,
    leased: bool,
    span: Span,
) -> Opened | Reply:
    """One request up to its first token: an engine sends the head, and perhaps a role, before that is there.

    `leased`: it is the prefill engine's lease that sets the time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + first_byte_s
    answer = None
    try:
        answer = await _sent(x, engine, body, first_byte_s, span, remote)
        if answer.status != 200:
            data = await answer.read(settings.max_answer_bytes, settings.idle_timeout_s)
            answer.close()
            return Reply(answer.status, answer.headers, data)
        first = await answer.chunk(max(deadline - loop.time(), 0.001))
        while (seen := opening.look(first)) is opening.Look.MORE:
            piece = await answer.chunk(max(deadline - loop.time(), 0.001))
            if not piece:
                break
            first += piece
        if seen is opening.Look.FAILED:
            raise LegFailed(Leg.DECODE, engine.name, "error", "an error in the stream before its first token")
        return Opened(answer, first)
    except BaseException as error:
        if answer is not None:
            answer.close()
        if not isinstance(error, WireError):
            raise
        if leased and isinstance(error, TimedOut) and error.stage != "connect":
            raise LegFailed(Leg.DECODE, engine.name, "late", str(error)) from error
        raise failed(Leg.DECODE, engine.name, error) from error
