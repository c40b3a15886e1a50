"""The client's side of one request: its body, its answer, and that it may leave."""

import asyncio

from gateway.dispatch.exchange import Headers
from gateway.errors import ApiError
from gateway.front.call import Call, Dismissed, Gone

DRAIN_BYTES = 256 << 20
"""How much of a refused body is read and thrown away, so that its sender gets to read the refusal."""


class Client:
    """Who sent a call: answers carry `headers` as well."""

    __slots__ = ("_call", "_headers", "drain", "end", "write")

    def __init__(self, call: Call, headers: Headers) -> None:
        self._call = call
        self._headers = headers
        self.write = call.write
        self.drain = call.drain
        self.end = call.end

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The whole body, at most `limit` bytes. Raises `ApiError` (408, 413) and `Gone`."""
        try:
            body = await self._call.body(limit, DRAIN_BYTES, timeout_s)
        except TimeoutError:
            raise ApiError(408, f"The body stopped arriving for {timeout_s:g} s.", code="body_timeout") from None
        if body is None:
            what = f"The body is larger than {limit} bytes (setting max_body_bytes)."
            raise ApiError(413, what, code="body_too_large")
        return body

    def start(self, status: int, headers: Headers) -> None:
        self._call.start(status, headers + self._headers)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        self._call.reply(status, headers + self._headers, body)

    def fail(self, error: ApiError) -> None:
        """Answer with an error; as an event if the stream has begun."""
        if self._call.started:
            self.write(error.event())
            self.end()
        else:
            self.reply(error.status, error.headers(), error.body())


class Presence:
    """Cancels the current task when the client leaves or is dismissed; use as a context manager around the work."""

    __slots__ = ("_call", "_task")

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if self._call.gone:
            raise Gone
        if self._call.dismissed:
            raise Dismissed
        self._call.left = task.cancel

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._call.left = None
        if kind is asyncio.CancelledError and (self._call.gone or self._call.dismissed):
            self._task.uncancel()
            raise (Gone if self._call.gone else Dismissed) from None
