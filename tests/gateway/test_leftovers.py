"""Requests that fail leave nothing behind: what there is of a gateway after many of them is what was after a few."""

import asyncio
import gc
import json
import logging
from asyncio import Task
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.gateway.conftest import Pair, make_pair, until

WARM, MORE = 3, 12
PATH = "/v1/completions"
STREAM: dict[str, Any] = {"model": "m", "prompt": "not for long " * 20, "max_tokens": 12, "stream": True}
WHOLE = {**STREAM, "stream": False}

Ask = Callable[[Pair], Awaitable[None]]


def there() -> Counter[str]:
    """Objects by their class: the gateway's own, exceptions, tasks."""
    gc.collect()
    kinds = Counter(type(one) for one in gc.get_objects())
    named = {kind: f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    ours = {kind for kind in kinds if named[kind].startswith("gateway.") or issubclass(kind, BaseException | Task)}
    return Counter({named[kind]: kinds[kind] for kind in ours})


def asking(status: int, body: dict[str, Any], end: bytes = b"") -> Ask:
    async def ask(pair: Pair) -> None:
        answer = await pair.http.post(PATH, json=body)
        assert (answer.status_code, end in answer.content) == (status, True), answer.text

    return ask


async def sent(pair: Pair, raw: bytes, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(pair.gateway.url.rpartition(":")[2]))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % length + raw)
    return reader, writer


async def leaving(pair: Pair) -> None:
    """A client that has seen one event."""
    raw = json.dumps({**STREAM, "max_tokens": 1500}).encode()
    reader, writer = await sent(pair, raw, len(raw))
    await reader.readuntil(b"\n\n")
    writer.transport.abort()
    await until(lambda: not pair.gateway.booked(), 5)


async def breaking_off(pair: Pair) -> None:
    """A client that goes in the middle of its body."""
    _, writer = await sent(pair, b'{"model"', 99)
    await until(lambda: len(pair.gateway.server.server_state.tasks) == 1, 5)
    writer.transport.abort()
    await until(lambda: not pair.gateway.server.server_state.tasks, 5)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Ask]] = {
    "there is no such model": ({}, {}, asking(404, {**WHOLE, "model": "none"})),
    "the prefill engine errs": ({"error_rate": 1.0}, {}, asking(200, STREAM, b"[DONE]")),
    "it gives no parameters": ({"drop_params": True}, {}, asking(200, WHOLE)),
    "it hangs": ({"hang": "answer"}, {}, asking(200, STREAM, b"[DONE]")),
    "the decode engine errs": ({}, {"error_rate": 1.0, "error_status": 503}, asking(503, STREAM)),
    "it cuts the stream": ({}, {"cut_after": 3}, asking(200, STREAM, b"stream_cut")),
    "the client leaves": ({}, {}, leaving),
    "it breaks off": ({}, {}, breaking_off),
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Whatever is there already is not looked at again and again; pytest keeps no log records, and what they name."""
    gc.collect()
    gc.freeze()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    gc.unfreeze()


async def test_nothing_stays_of_requests_that_failed(fresh: None) -> None:
    calm = {"eject_failures": 1_000_000, "eject_most": 0.0, "retry_floor": 1_000_000, "prefill_timeout_s": 0.03}
    async with make_pair(**calm) as pair:
        for case, (prefill, decode, ask) in CASES.items():
            pair.prefill.faults.set(**prefill)
            pair.decode.faults.set(**decode)
            for _ in range(WARM):
                await ask(pair)
            before = there()
            for _ in range(MORE):
                await ask(pair)
            await until(lambda: not pair.gateway.booked(), 5)
            stayed = {kind: count for kind, count in (there() - before).items() if count >= MORE // 2}
            assert not stayed, f"{case}: {stayed}"
            pair.prefill.faults.heal()
            pair.decode.faults.heal()
