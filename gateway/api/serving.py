"""The routes that engines answer: from bytes to an exchange, and the exchange's end."""

import asyncio
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Protocol

from gateway.admission.keys import Keys
from gateway.api.client import Client, Presence
from gateway.dispatch import journey
from gateway.dispatch.exchange import Exchange
from gateway.dispatch.relay import Cut, Stuck
from gateway.errors import ApiError, model_not_found, unavailable
from gateway.fleet.fleet import Fleet
from gateway.front.call import Call, Dismissed, Gone
from gateway.index.lookup import Lookup
from gateway.prompt import body as bodies
from gateway.prompt.apis import RESPONSES, Api
from gateway.prompt.split import whole
from gateway.settings import Settings
from gateway.telemetry.metrics import UNKNOWN, Metrics
from gateway.telemetry.tracing import Span, Tracing, Untraced
from policies.contract import Request
from policies.registry import built_in

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
_PASSED_ON = (b"accept", b"user-agent")
_SESSION_BYTES = 256
_UNTRACED = Untraced()


class Dispatching(Protocol):
    """Carries out a request: a dispatcher, or one that is watched."""

    async def serve(self, x: Exchange, client: journey.Client) -> int: ...


class Elsewhere(Protocol):
    """Other fleets."""

    def may(self, headers: Mapping[bytes, bytes]) -> bool: ...

    async def serve(
        self,
        error: ApiError,
        api: Api,
        headers: Mapping[bytes, bytes],
        raw: bytes,
        request_id: bytes,
        client: journey.Client,
    ) -> int: ...


class Serving:
    """Answers calls on all routes that engines answer."""

    def __init__(
        self,
        keys: Keys,
        fleet: Fleet,
        lookup: Lookup,
        dispatcher: Dispatching,
        metrics: Metrics,
        tracing: Tracing,
        settings: Settings,
        elsewhere: Elsewhere,
    ) -> None:
        self._elsewhere = elsewhere
        self._keys = keys
        self._fleet = fleet
        self._lookup = lookup
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._tracing = tracing
        self._settings = settings
        self._choices = built_in()

    async def __call__(self, call: Call, api: Api) -> None:
        started = time.perf_counter()
        headers = dict(call.headers)
        chance = os.urandom(20).hex().encode()
        request_id = headers.get(b"x-request-id", b"")
        if not (request_id and _REQUEST_ID.fullmatch(request_id)):
            request_id = chance[8:]
        client = Client(call, [(b"x-request-id", request_id)])
        model = UNKNOWN
        span: Span = _UNTRACED
        outcome = "cancelled"
        try:
            chooses = self._keys.check(headers)
            if call.method != b"POST":
                raise ApiError(405, f"{api.path} takes POST.", code="method_not_allowed")
            raw = call.ready(self._settings.max_body_bytes)
            if raw is None:
                raw = await self._body(client)
            fields = bodies.parse(raw)
            may = self._elsewhere.may(headers)
            refused: ApiError | None = None
            with Presence(call):
                try:
                    model = self._model(fields)
                    span = self._tracing.begin(api.name, model, headers)
                    x = await self._exchange(
                        api, fields, model, len(raw), headers, request_id, chance[:8], span, started, may, chooses
                    )
                    status = await self._dispatcher.serve(x, client)
                except ApiError as error:
                    if not may or call.started:
                        raise
                    refused = error
                if refused is not None:
                    status = await self._elsewhere.serve(refused, api, headers, raw, request_id, client)
            outcome = "ok" if status < 400 else "rejected" if status < 500 else "engine_error"
        except Gone:
            pass
        except Dismissed:
            outcome = "dismissed"
            log.warning("request %s: ended because the gateway ends", request_id.decode())
            client.fail(unavailable("The gateway is shutting down.", "shutting_down"))
        except ApiError as error:
            outcome = "rejected" if error.status < 500 else "failed"
            client.fail(error)
        except Stuck as stuck:
            outcome = "stuck"
            log.warning("request %s: %s", request_id.decode(), stuck)
        except Cut as cut:
            outcome = "cut"
            log.warning("request %s: stream cut: %s", request_id.decode(), cut)
            client.fail(ApiError(502, "The engine's stream ended early.", kind="server_error", code="stream_cut"))
        except Exception:
            outcome = "failed"
            log.exception("request %s", request_id.decode())
            client.fail(ApiError(500, "Baton failed; its log says why.", kind="server_error", code="internal"))
        finally:
            self._metrics.requests(api.name, model, outcome).inc()
            self._metrics.duration(api.name, model).observe(time.perf_counter() - started)
            span.end(error="" if outcome == "ok" else outcome)

    async def _body(self, client: Client) -> bytes:
        """A body that comes in pieces. Raises `ApiError` and `Gone`."""
        within_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(within_s):
                return await client.body(self._settings.max_body_bytes, self._settings.body_timeout_s)
        except TimeoutError:
            raise ApiError(408, f"The body took longer than {within_s:g} s.", code="body_timeout") from None

    def _model(self, fields: bodies.Fields) -> str:
        """The model that is asked for; the only one there is if none is named. Raises `ApiError`."""
        named = bodies.value(fields, "model")
        if named is None:
            models = {engine.model for engine in self._fleet}
            if len(models) == 1:
                return models.pop()
        if not isinstance(named, str) or not named:
            raise ApiError(400, "Name a model in `model` (a string).", param="model", code="model_required")
        if not self._fleet.known(named):
            if not any(engine.model or engine.served for engine in self._fleet):
                raise unavailable(f"No engine can serve `{named}` now.")
            raise model_not_found(named)
        return named

    def _policy(self, headers: dict[bytes, bytes]) -> str:
        """The built-in policy that the client chose; empty if it left that to us. Raises `ApiError`."""
        chosen = headers.get(b"x-baton-policy", b"").decode("latin-1")
        if chosen and chosen not in self._choices:
            known = ", ".join(sorted(self._choices))
            raise ApiError(400, f"There is no policy of that name: `x-baton-policy` takes one of {known}.")
        return chosen

    async def _exchange(
        self,
        api: Api,
        fields: bodies.Fields,
        model: str,
        size: int,
        headers: dict[bytes, bytes],
        request_id: bytes,
        secret: bytes,
        span: Span,
        started: float,
        elsewhere: bool,
        chooses: bool,
    ) -> Exchange:
        limits = (bodies.number(fields, name) for name in api.limits)
        session = _session(headers, fields)
        looking = time.perf_counter()
        sight = await self._lookup.look(model, api, fields, size, session)
        times = {"look": time.perf_counter() - looking}
        return Exchange(
            api=api,
            fields=fields,
            original=fields,
            sight=sight,
            session=session,
            times=times,
            request=Request(
                model=model,
                prompt_tokens=sight.reading.tokens,
                block_size=sight.reading.step,
                session=session.decode("latin-1"),
                prefix=sight.reading.prefix,
                output_tokens=next((limit for limit in limits if limit is not None), None),
                whole=whole(api, fields),
                ttft_slo_s=_objective(headers, b"x-baton-ttft-slo-ms") or self._settings.ttft_slo_s,
                itl_slo_s=_objective(headers, b"x-baton-itl-slo-ms"),
            ),
            lasting=api is RESPONSES and bodies.flag(fields, "background"),
            stream=api.generates and bodies.flag(fields, "stream"),
            request_id=request_id,
            engine_id=request_id + b"-" + secret,
            headers=tuple((name, headers[name]) for name in _PASSED_ON if name in headers),
            span=span,
            policy=self._policy(headers) if chooses or self._settings.policy_header else "",
            elsewhere=elsewhere,
            explain=b"x-baton-facts" in headers,
            started=started,
        )


def _objective(headers: dict[bytes, bytes], name: bytes) -> float | None:
    """The client's own objective, in seconds; None if it names none. Raises `ApiError`."""
    given = headers.get(name)
    if given is None:
        return None
    try:
        wanted_s = float(given) * 1e-3
    except ValueError:
        wanted_s = 0.0
    if not 0.0 < wanted_s < math.inf:
        raise ApiError(400, f"`{name.decode()}` takes a number of milliseconds above 0.", code="invalid_objective")
    return wanted_s


def _session(headers: dict[bytes, bytes], fields: bodies.Fields) -> bytes:
    """The conversation that a request belongs to: `X-Session-Id`, or OpenAI's `prompt_cache_key`; empty if unnamed."""
    named = headers.get(b"x-session-id", b"")
    if not named and isinstance(key := bodies.value(fields, "prompt_cache_key"), str):
        named = key.encode("utf-8", "replace")
    return named[:_SESSION_BYTES]
