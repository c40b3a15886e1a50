"""A load generator that checks every byte it can foresee: status, order of events, their end."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from load.standin import EVENTS, event

STREAM = b"".join(event(number) for number in range(EVENTS)) + b"data: [DONE]\n\n"
"""The body of every stream, whoever relays it and however it is divided."""

KEY = "sk-bench"
"""Sent along; a gateway that asks for no key does not mind."""

TURNS = 16
"""Requests of one conversation, each as much longer than the one before."""

_STARTING = 256
"""Streams that are begun at once, where thousands are held."""

_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


@dataclass
class Counts:
    """What a run amounted to; times in seconds."""

    completed: int = 0
    aborted: int = 0
    bad: int = 0
    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """Between two reads of a stream."""


def request(text: str, stream: bool) -> bytes:
    """A chat request with one message."""
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}],"max_tokens":%d,"stream":%s}' % (
        text.encode(),
        EVENTS if stream else 16,
        b"true" if stream else b"false",
    )
    return _HEAD % len(body) + body


class Texts:
    """Prompts of about `size` bytes: always the `same`, each one `fresh`, or `turns` of a growing conversation."""

    def __init__(self, kind: str, size: int, seed: int = 1) -> None:
        self._kind = kind
        self._size = size
        self._pick = random.Random(seed)
        self._text = self._words(size) if kind == "same" else ""
        self._turn = 0

    def _words(self, size: int) -> str:
        return " ".join(f"{self._pick.getrandbits(32):x}" for _ in range(size // 9 + 1))[:size]

    def __call__(self) -> str:
        if self._kind == "fresh":
            return self._words(self._size)
        if self._kind == "turns":
            if self._turn % TURNS == 0:
                self._text = ""
            self._turn += 1
            self._text += self._words(self._size // TURNS)
        return self._text


async def one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes, stream: bool, counts: Counts, abort: int = 0
) -> bool:
    """One request and its check; with `abort`, the client leaves after so many events. Returns whether it stayed."""
    start = time.perf_counter()
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    good = head.startswith(b"HTTP/1.1 200")
    if b"\r\ncontent-length:" in lower:
        size = int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(size)
        counts.ttft_s.append(time.perf_counter() - start)
        good = good and not stream and b'"hello"' in body
    else:
        pieces: list[bytes] = []
        last = 0.0
        while length := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append((await reader.readexactly(length + 2))[:-2])
            now = time.perf_counter()
            (counts.gaps_s if last else counts.ttft_s).append(now - (last or start))
            last = now
            if abort and len(pieces) >= abort:
                counts.aborted += STREAM.startswith(b"".join(pieces))
                return False
        await reader.readexactly(2)
        good = good and stream and b"".join(pieces) == STREAM
    counts.completed += good
    counts.bad += not good
    return True


async def blast(
    port: int, texts: Callable[[int], Texts], stream: bool, connections: int, seconds: float, abort: int = 0
) -> Counts:
    """Keep `connections` busy for `seconds`, each with texts of its own; each finishes what it has begun."""
    counts = Counts()
    end = time.perf_counter() + seconds
    starting = asyncio.Semaphore(_STARTING)

    async def worker(number: int) -> None:
        mine = texts(number)
        async with starting:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while True:
                if not await one(reader, writer, request(mine(), stream), stream, counts, abort):
                    writer.transport.abort()
                    if time.perf_counter() >= end:
                        return
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                elif time.perf_counter() >= end:
                    return
        except (OSError, asyncio.IncompleteReadError, ValueError):
            counts.bad += 1
        finally:
            writer.close()

    await asyncio.gather(*(worker(number) for number in range(connections)))
    return counts
