"""The little of ASGI that a double needs."""

from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


class CutError(Exception):
    """The connection shall be closed here, whatever is still to come."""


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def gone(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


def start(status: int, kind: bytes, length: int | None = None, *more: tuple[bytes, bytes]) -> dict[str, Any]:
    headers = list(more)
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if kind:
        headers.append((b"content-type", kind))
    headers.append((b"vary", b"Origin"))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def answer(send: Send, status: int, body: bytes, kind: bytes, *more: tuple[bytes, bytes]) -> None:
    await send(start(status, kind, len(body), *more))
    await send({"type": "http.response.body", "body": body})


async def no_route(send: Send, path: str, verbs: list[str]) -> None:
    if verbs:
        await answer(send, 405, b'{"detail":"Method Not Allowed"}', JSON, (b"allow", ", ".join(verbs).encode()))
    else:
        await answer(send, 404, b'{"detail":"Not Found"}', JSON)
