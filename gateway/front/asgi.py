"""A call as ASGI has it, for the routes that are not hot."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import httptools

from gateway.front.call import Call, Gone

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_BYTES = 1 << 20
"""Largest body of a request to such a route."""
_BODY_IDLE_S = 30.0


async def serve(app: App, call: Call) -> None:
    """Let `app` answer."""
    url = httptools.parse_url(call.url)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": call.version,
        "method": call.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(url.path.decode("ascii")),
        "raw_path": url.path,
        "query_string": url.query or b"",
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
