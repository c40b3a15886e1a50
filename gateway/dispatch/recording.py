"""Requests as they were, for `baton replay --trace`: when, how long, what their prompts share. No text, no tokens.

A JSON line for each request that was answered, `Line` without what is empty. `hash_ids` are chained hashes of the
prompt after each `block_tokens`: equal hashes are equal beginnings, nothing else can be read from them.
"""

import logging
import os
import re
import struct
import time

import msgspec
import xxhash

from gateway.dispatch.exchange import Exchange, Headers
from gateway.dispatch.journey import Client, Dispatcher
from gateway.settings import Settings

log = logging.getLogger(__name__)

BLOCK_TOKENS = 128
"""Tokens that one recorded hash stands for, at least."""

_TAIL = 1024
"""Bytes of a stream's end in which its usage is looked for."""
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens":\s*(\d+)')


class Line(msgspec.Struct, omit_defaults=True):
    """One request. `timestamp`, `input_length`, `output_length` and `hash_ids` as in Mooncake's traces."""

    timestamp: float
    """When it came, ms since 1970."""
    input_length: int
    output_length: int
    """Tokens; of a stream that does not tell, its events."""
    block_tokens: int
    """That one of `hash_ids` stands for."""
    hash_ids: list[int] = []
    end: float = 0.0
    """When its answer had been sent, ms since 1970."""
    session: str = ""
    """A hash of the session's name."""


class Recording:
    """Writes down what a dispatcher has answered, up to a size of the file."""

    def __init__(self, dispatcher: Dispatcher, settings: Settings) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._full = False

    async def serve(self, x: Exchange, client: Client) -> int:
        came_s = time.time() - (time.perf_counter() - x.started)
        tap = Tap(client)
        status = await self._dispatcher.serve(x, tap)
        if status == 200 and not self._full:
            self._write(_line(x, tap, came_s))
        return status

    def _write(self, line: Line) -> None:
        """One write for a whole line, so that the lines of several workers do not mix."""
        path, most = self._settings.record_file, self._settings.record_max_bytes
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                if os.fstat(file).st_size < most:
                    os.write(file, msgspec.json.encode(line) + b"\n")
                    return
            finally:
                os.close(file)
            log.warning("record_file %s has %d bytes (record_max_bytes): nothing more is recorded", path, most)
        except OSError as error:
            log.warning("record_file %s: %s: nothing more is recorded", path, error)
        self._full = True


def _line(x: Exchange, tap: "Tap", came_s: float) -> Line:
    reading = x.sight.reading
    each = -(-BLOCK_TOKENS // reading.step)
    hashes = struct.unpack(f"<{len(reading.hashes) // 8}Q", reading.hashes)
    return Line(
        timestamp=round(1e3 * came_s, 1),
        input_length=x.prompt_tokens or reading.tokens,
        output_length=tap.tokens,
        hash_ids=list(hashes[each - 1 :: each]),
        block_tokens=each * reading.step,
        end=round(1e3 * time.time(), 1),
        session=xxhash.xxh3_64_hexdigest(x.session) if x.session else "",
    )


class Tap:
    """A client whose answer's tokens are counted as they pass."""

    def __init__(self, client: Client) -> None:
        self.start, self.drain, self.end = client.start, client.drain, client.end
        self._client = client
        self._events = 0
        self._tail = b""

    def write(self, piece: bytes) -> bool:
        self._events += piece.count(b"\ndata: ") + piece.startswith(b"data: ")
        self._tail = (self._tail + piece)[-_TAIL:] if len(piece) < _TAIL else piece[-_TAIL:]
        return self._client.write(piece)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        self._tail = body
        self._client.reply(status, headers, body)

    @property
    def tokens(self) -> int:
        """As the engine says, else the number of events."""
        said = _COMPLETION.findall(self._tail)
        return max(1, int(said[-1]) if said else self._events - 1)
