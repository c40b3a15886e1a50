"""The client's side of one ASGI exchange: reading its body, answering it, noticing that it left."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.dispatch.exchange import Headers
from gateway.errors import ApiError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DRAIN_BYTES = 256 << 20
"""How much of a refused body is read and thrown away, so that its sender gets to read the refusal."""


class Gone(Exception):
    """The client closed its connection."""


async def read_body(receive: Receive, limit: int, timeout_s: float) -> bytes:
    """The whole body, at most `limit` bytes. Raises `ApiError` (408, 413) and `Gone`."""
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, f"The body stopped arriving for {timeout_s:g} s.", code="body_timeout") from None
        if message["type"] == "http.disconnect":
            raise Gone
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        else:
            pieces.clear()
        if size > DRAIN_BYTES or not message.get("more_body", False):
            break
    if size > limit:
        raise ApiError(413, f"The body is larger than {limit} bytes (setting max_body_bytes).", code="body_too_large")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class AsgiClient:
    """Answers one request."""

    __slots__ = ("_headers", "_send", "started")

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send = send
        self._headers = headers
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._headers]})

    async def send(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Answer with an error; as an event if the stream has begun."""
        if self.started:
            await self.send(error.event())
        else:
            body = error.body()
            await self.start(error.status, [*error.headers(), (b"content-length", str(len(body)).encode())])
            await self.send(body)
        await self.end()


class Presence:
    """Cancels the current task when the client leaves; use as a context manager around the work for it."""

    __slots__ = ("_receive", "_task", "_watch", "gone")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()

    def __enter__(self) -> "Presence":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.create_task(self._until_gone())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._watch.cancel()
        if self.gone and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise Gone from None
