"""A load generator that checks every byte it can foresee: status, order of events, their end."""

import asyncio
import time
from dataclasses import dataclass, field

from load.standin import EVENTS, event

STREAM = b"".join(event(number) for number in range(EVENTS)) + b"data: [DONE]\n\n"
"""The body of every stream, whoever relays it and however it is divided."""


@dataclass
class Counts:
    """What a run amounted to; times in seconds."""

    completed: int = 0
    bad: int = 0
    ttft_s: list[float] = field(default_factory=list)


def request(size: int, stream: bool) -> bytes:
    """A chat request whose body is about `size` bytes."""
    filler = "lorem ipsum " * (size // 12)
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}],"max_tokens":%d,"stream":%s}' % (
        filler.encode(),
        EVENTS if stream else 16,
        b"true" if stream else b"false",
    )
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    return head % len(body) + body


async def read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """A body of given length or in chunks."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return await reader.readexactly(int(line.partition(b":")[2]))
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(pieces)


async def one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes, stream: bool, counts: Counts
) -> None:
    """One request and its check."""
    start = time.perf_counter()
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    counts.ttft_s.append(time.perf_counter() - start)
    body = await read_body(reader, head)
    good = head.startswith(b"HTTP/1.1 200") and (body == STREAM if stream else b'"hello"' in body)
    counts.completed += good
    counts.bad += not good


async def blast(port: int, size: int, stream: bool, connections: int, seconds: float) -> Counts:
    """Keep `connections` busy for `seconds`; each finishes what it has begun."""
    counts = Counts()
    raw = request(size, stream)
    end = time.perf_counter() + seconds

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while time.perf_counter() < end:
                await one(reader, writer, raw, stream, counts)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            counts.bad += 1
        finally:
            writer.close()

    await asyncio.gather(*(worker() for _ in range(connections)))
    return counts
