"""A stand-in for engines that costs as little as Python allows, so that a gateway in front of it is what is measured.

It speaks vLLM's surface only as far as a gateway looks: health, models, a prefill answer with complete transfer
parameters, and streams of numbered events. What must behave like an engine is the double, not this.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import cast

import httptools
import uvloop

MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
PARAMS = (
    b'{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2,3,4]],"remote_engine_id":"e",'
    b'"remote_request_id":"r","remote_host":"127.0.0.1","remote_port":1,"tp_size":1,"remote_num_tokens":64}'
)
USAGE = b'"usage":{"prompt_tokens":64,"completion_tokens":16,"total_tokens":80}'
WHOLE = b'{"object":"chat.completion","choices":[{"index":0,"message":{"content":"hello"}}],' + USAGE + b"}"
PREFILLED = WHOLE[:-1] + b',"kv_transfer_params":' + PARAMS + b"}"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = 128
"""Events of a stream, before `[DONE]`."""


def event(number: int) -> bytes:
    """The number-th event of every stream, about 200 bytes."""
    return b'data: {"choices":[{"index":0,"delta":{"content":" t%06d"}}],"pad":"%s"}\n\n' % (number, b"x" * 128)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKS = [*(chunk(event(number)) for number in range(EVENTS)), chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


class Protocol(asyncio.Protocol):
    """One connection. A stream's events leave `interval_s` apart, all at once if that is zero; the second one waits
    for `pause_s`."""

    def __init__(self, interval_s: float, pause_s: float) -> None:
        self._interval_s = interval_s
        self._pause_s = pause_s
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._url = b""

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        if self._url == b"/health":
            self._answer(b"")
        elif self._url == b"/v1/models":
            self._answer(MODELS)
        elif b'"do_remote_decode":true' in body:
            self._answer(PREFILLED)
        elif b'"stream":true' in body:
            self._transport.write(STREAM_HEAD)
            self._stream(0)
        else:
            self._answer(WHOLE)

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)

    def _stream(self, number: int) -> None:
        wait_s = self._pause_s if number == 0 and self._pause_s else self._interval_s
        if not wait_s:
            self._transport.writelines(CHUNKS[number:])
            return
        self._transport.write(CHUNKS[number])
        if number + 1 < len(CHUNKS):
            later: Callable[..., asyncio.TimerHandle] = asyncio.get_running_loop().call_later
            self._timer = later(wait_s, self._stream, number + 1)


async def serve(ports: list[int], interval_s: float, pause_s: float) -> None:
    """Listen on all ports until cancelled."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: Protocol(interval_s, pause_s), "127.0.0.1", port, backlog=4096)
        for port in ports
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[3:]], float(sys.argv[1]), float(sys.argv[2])))
