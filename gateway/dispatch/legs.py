"""The two legs of a request: prefill, then decode."""

import asyncio
import time
from dataclasses import dataclass

from gateway.connector import nixl_pull
from gateway.connector.lease import Stale, Transfer
from gateway.connector.nixl_pull import Incomplete, Prefilled
from gateway.dispatch.exchange import Exchange
from gateway.dispatch.expiry import Expiry
from gateway.dispatch.failure import LegFailed, Reply, cause_of, cause_of_status
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
        reply = await _call(x, Leg.PREFILL, engine, body, settings, settings.prefill_timeout_s, span, remote=False)
        if reply.status != 200:
            raise LegFailed(Leg.PREFILL, engine.name, cause_of_status(reply.status), f"status {reply.status}")
        now = asyncio.get_running_loop().time()
        try:
            expected = x.sight.reading.tokens if x.ids is not None else None
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
    first_byte_s = settings.first_byte_timeout_s
    if transfer is None:
        body = nixl_pull.whole_body(x.fields)
    else:
        try:
            body = nixl_pull.decode_body(x.api, x.fields, transfer.take(now), x.ids)
        except Stale:
            raise LegFailed(Leg.DECODE, engine.name, "late", "the lease ended between the legs") from None
    expiry = None
    if transfer is not None and source is not None:
        if x.stream:
            first_byte_s = min(first_byte_s, transfer.left_s(now))
        else:
            expiry = Expiry(source, transfer.left_s(now), settings.health_timeout_s)
    try:
        if x.stream:
            opened = await _open(x, engine, body, settings, first_byte_s, transfer is not None, span)
        else:
            remote = transfer is not None
            opened = await _call(x, Leg.DECODE, engine, body, settings, first_byte_s, span, remote)
            if expiry is not None and not await expiry.in_time():
                raise LegFailed(Leg.DECODE, engine.name, "late", "blocks expired on the prefill engine meanwhile")
    finally:
        if expiry is not None:
            expiry.stop()
    if isinstance(opened, Reply) and (opened.status >= 500 or opened.status == 429):
        cause = cause_of_status(opened.status)
        raise LegFailed(Leg.DECODE, engine.name, cause, f"status {opened.status}", opened)
    x.times["decode"] = time.perf_counter() - start
    return opened


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
    """One request with its whole answer; one that carries transfer parameters (`remote`) is sent once at most."""
    try:
        answer = await engine.pool.request(
            "POST", x.api.target, x.engine_headers(span), body, first_byte_s=first_byte_s, twice=not remote
        )
        try:
            data = await answer.read(settings.max_answer_bytes, settings.idle_timeout_s)
        finally:
            answer.close()
    except WireError as error:
        raise LegFailed(leg, engine.name, cause_of(error), str(error)) from error
    return Reply(answer.status, answer.headers, data)


async def _open(
    x: Exchange, engine: Engine, body: bytes, settings: Settings, first_byte_s: float, remote: bool, span: Span
) -> Opened | Reply:
    """One request up to the first byte of its body: an engine sends the head before the first token is there."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + first_byte_s
    answer = None
    try:
        answer = await engine.pool.request(
            "POST", x.api.target, x.engine_headers(span), body, first_byte_s=first_byte_s, twice=not remote
        )
        if answer.status != 200:
            data = await answer.read(settings.max_answer_bytes, settings.idle_timeout_s)
            answer.close()
            return Reply(answer.status, answer.headers, data)
        first = await answer.chunk(max(deadline - loop.time(), 0.001))
        return Opened(answer, first)
    except BaseException as error:
        if answer is not None:
            answer.close()
        if not isinstance(error, WireError):
            raise
        late = remote and isinstance(error, TimedOut) and first_byte_s < settings.first_byte_timeout_s
        raise LegFailed(Leg.DECODE, engine.name, "late" if late else cause_of(error), str(error)) from error
