"""Other fleets, by their gateways: what this one cannot serve now goes there whole, and comes back as it is."""

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gateway.dispatch.exchange import Headers
from gateway.dispatch.failure import cause_of
from gateway.dispatch.journey import Client, relayed
from gateway.dispatch.relay import Tally, relay
from gateway.errors import ApiError
from gateway.prompt.apis import Api
from gateway.settings import Fallback, Settings, SettingsError
from gateway.telemetry.metrics import Metrics
from gateway.wire.answer import Answer
from gateway.wire.errors import WireError
from gateway.wire.pool import Limits, Pool

log = logging.getLogger(__name__)

HEADER = b"x-baton-fallback"
"""On a request: it came from another fleet, and is not sent on again. On an answer: the fleet that it came from."""

REST_S = 5.0
"""A fleet that failed is not asked for so long."""
REASONS = frozenset(("no_engine", "no_prefill_engine", "engine_unreachable", "engine_overloaded", "saturated"))
"""Codes of errors that say: not here, not now, and nothing of it was done."""
_PASSED_ON = (b"accept", b"user-agent", b"x-session-id", b"x-baton-facts", b"traceparent", b"tracestate")
_NOT_THEIRS = (401, 403, 404, 408, 429)
"""Statuses that say something of the other fleet, or of our key there, and nothing of the request."""


class _Failed(Exception):
    """The other fleet did not serve it."""


class _Fleet:
    """The gateway of another fleet."""

    def __init__(self, told: Fallback, settings: Settings) -> None:
        """Raises `SettingsError`."""
        self.name = told.name or urlsplit(told.url).netloc
        limits = Limits(connections=settings.connections_per_engine, connect_s=settings.connect_timeout_s)
        try:
            self.pool = Pool(told.url, limits=limits)
            key = Path(told.key_file).read_text().split() if told.key_file else []
        except (ValueError, OSError) as error:
            raise SettingsError(f"fallback {told.url}: {error}") from None
        self.headers = [(b"authorization", b"Bearer " + key[0].encode())] if key else []
        self.rests_until_s = 0.0
        self.why = ""


class Fallbacks:
    """All of them, in the order in which they are asked. Raises `SettingsError`."""

    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        self._fleets = [_Fleet(told, settings) for told in settings.fallback]
        self._metrics = metrics
        self._settings = settings

    def open(self) -> bool:
        """Whether there is one that may be asked now."""
        now = time.monotonic()
        return any(fleet.rests_until_s <= now for fleet in self._fleets)

    def troubles(self) -> list[str]:
        now = time.monotonic()
        return [f"fallback {f.name} failed: {f.why}" for f in self._fleets if f.rests_until_s > now]

    def may(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request may go to another fleet now."""
        return bool(self._fleets) and HEADER not in headers and self.open()

    async def serve(
        self, error: ApiError, api: Api, headers: Mapping[bytes, bytes], raw: bytes, request_id: bytes, client: Client
    ) -> int:
        """Answer a request that `may` go there and ended in `error` here; returns the status sent.

        Raises `error` if no other fleet serves it, `Cut` and `Stuck` once its answer has begun.
        """
        if error.code not in REASONS:
            raise error
        asked = [(name, headers[name]) for name in _PASSED_ON if name in headers]
        asked += [(b"content-type", b"application/json"), (b"x-request-id", request_id), (HEADER, b"1")]
        for fleet in self._fleets:
            if fleet.rests_until_s > time.monotonic():
                continue
            try:
                answer, first = await self._ask(fleet, api, [*asked, *fleet.headers], raw)
            except _Failed as failed:
                fleet.why = str(failed)
                self._metrics.fallback_failures(fleet.name).inc()
                log.warning("request %s: fallback %s: %s", request_id.decode(), fleet.name, failed)
                continue
            try:
                self._metrics.fallback(fleet.name, error.code or "unknown").inc()
                return await self._pass(answer, first, fleet, client)
            finally:
                answer.close()
        raise error

    async def _ask(self, fleet: _Fleet, api: Api, headers: Headers, raw: bytes) -> tuple[Answer, bytes]:
        """The beginning of its answer: all of it if it is not streamed. Raises `_Failed`."""
        settings = self._settings
        first_byte_s = settings.first_byte_timeout_s
        deadline = asyncio.get_running_loop().time() + first_byte_s
        answer: Answer | None = None
        try:
            answer = await fleet.pool.request("POST", api.target, headers, raw, first_byte_s=first_byte_s)
            if answer.status in _NOT_THEIRS or answer.status >= 500:
                if answer.status != 429:
                    fleet.rests_until_s = time.monotonic() + REST_S
                raise _Failed(f"it answered with {answer.status}")
            if _streams(answer):
                return answer, await answer.chunk(max(deadline - asyncio.get_running_loop().time(), 0.001))
            return answer, await answer.read(settings.max_answer_bytes, settings.idle_timeout_s)
        except BaseException as error:
            if answer is not None:
                answer.close()
            if not isinstance(error, WireError):
                raise
            fleet.rests_until_s = time.monotonic() + REST_S
            raise _Failed(f"{cause_of(error)}: {error}") from error

    async def _pass(self, answer: Answer, first: bytes, fleet: _Fleet, client: Client) -> int:
        headers = [*relayed(answer.headers), (HEADER, fleet.name.encode("ascii", "replace"))]
        if not _streams(answer):
            client.reply(answer.status, headers, first)
            return answer.status
        client.start(answer.status, headers)
        await relay(answer, first, client, self._settings, Tally())
        client.end()
        return answer.status

    def close(self) -> None:
        for fleet in self._fleets:
            fleet.pool.close()


def _streams(answer: Answer) -> bool:
    return (answer.header(b"content-type") or b"").startswith(b"text/event-stream")
