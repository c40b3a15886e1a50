"""A call as ASGI has it, for the routes that are not hot."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from gateway.front.call import Call, Gone

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_BYTES = 1 << 20
"""Largest body of a request to such a route."""
_BODY_IDLE_S = 30.0


def split(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request's target, in any form that it may have (RFC 9112, section 3.2)."""
    if not target.startswith(b"/"):
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return path, query


async def serve(app: App, call: Call) -> None:
    """Let `app` answer."""
    path, query = split(call.url)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": call.version,
        "method": call.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": call.headers,
        "server": None,
        "client": call.peer,
    }
    await app(scope, _receive(call), _send(call))


def _receive(call: Call) -> Receive:
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            try:
                body = await call.body(BODY_BYTES, BODY_BYTES, _BODY_IDLE_S)
            except (Gone, TimeoutError):
                body = None
            if body is not None:
                return {"type": "http.request", "body": body, "more_body": False}
        elif not (call.gone or call.ended):
            left = asyncio.Event()
            call.left = left.set
            await left.wait()
        return {"type": "http.disconnect"}

    return receive


def _send(call: Call) -> Send:
    start: Message = {}

    async def send(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not call.started:
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            if not more:
                call.reply(start["status"], headers, body)
                return
            call.start(start["status"], headers)
        if body:
            await call.send(body)
        if not more:
            call.end()

    return send
