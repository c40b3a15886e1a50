"""The way of a generating request: read, refused or queued, answered whole or as a stream, abandoned."""

import asyncio
import time
from typing import Any

from engines.double import handover
from engines.double.answer import Choice, FailedError, Usage, deltas
from engines.double.asgi import EVENTS, JSON, CutError, Receive, Send, answer, gone, start
from engines.double.ask import Api, Ask, read
from engines.double.body import parse
from engines.double.chat import Chat
from engines.double.completion import Completion
from engines.double.engine import Engine, EngineDeadError
from engines.double.errors import INTERNAL, RefusedError, error_body, queue_full
from engines.double.formats import Format, Head
from engines.double.kv import Tape
from engines.double.messages import Messages
from engines.double.process import Process
from engines.double.responses import Responses
from engines.double.sequence import Sequence

ROUTES: dict[str, tuple[Api, type[Chat | Completion | Messages | Responses]]] = {
    "/v1/chat/completions": ("chat", Chat),
    "/v1/completions": ("completions", Completion),
    "/v1/messages": ("messages", Messages),
    "/v1/responses": ("responses", Responses),
}


async def generate(
    double: Process, path: str, headers: dict[str, str], raw: bytes, receive: Receive, send: Send
) -> None:
    """Serve one request on a path of `ROUTES`. Raises `EngineDeadError`, and `CutError` to break the connection."""
    api, form = ROUTES[path]
    engine = double.engine
    params: Any = None
    try:
        engine = double.of_rank(headers.get("x-data-parallel-rank"))
        body = parse(raw, headers.get("content-type", ""))
        params = body.get("kv_transfer_params")
        name = double.named(body)
        asked = read(api, body, name, double.limits)
        if not engine.admits(len(asked.prompts) * asked.n):
            engine.stats.admission_rejections += 1
            raise queue_full()
    except RefusedError as error:
        if error.admitted and isinstance(params, dict) and params.get("do_remote_prefill"):
            engine.reject(params)
        anthropic = api == "messages" and error.admitted
        await answer(send, error.status, error.anthropic_body() if anthropic else error.body(), JSON)
        return
    given = headers.get("x-request-id") or double.ids.next()
    prefix = {"chat": "chatcmpl-", "completions": "cmpl-", "messages": "chatcmpl-", "responses": "resp_"}[api]
    if api == "responses":
        given = double.ids.next()
    head = Head(prefix + given, int(time.time()), name, double.ids)
    choices = _choices(asked, head, double.limits.block_size, name if name in double.adapters else None)
    timing = double.timing
    if way_s := timing.second_leg_s if handover.wants_pull(choices[0].sequence) else timing.leg_s:
        await asyncio.sleep(way_s * double.faults.slow)
    for choice in choices:
        engine.submit(choice.sequence)
    leaving = asyncio.get_running_loop().create_task(_leave(receive, engine, choices))
    try:
        if asked.stream:
            await _stream(double, engine, asked, choices, form(asked, head), send)
        else:
            await _whole(double, engine, asked, choices, form(asked, head), send)
    finally:
        leaving.cancel()
        for choice in choices:
            engine.abort(choice.sequence)


async def _whole(double: Process, engine: Engine, asked: Ask, choices: list[Choice], form: Format, send: Send) -> None:
    try:
        async for _ in deltas(engine, asked, choices):
            pass
    except FailedError:
        if engine.dead:
            raise EngineDeadError from None
        await answer(send, INTERNAL[2], error_body(*INTERNAL), JSON)
        return
    if any(choice.finish == "abort" for choice in choices):
        return
    params = double.hand_over([choice.sequence for choice in choices], asked.api)
    await answer(send, 200, form.whole(Usage.of(asked, choices), choices, params), JSON)
    await double.answered()


async def _stream(double: Process, engine: Engine, asked: Ask, choices: list[Choice], form: Format, send: Send) -> None:
    cut, fail = double.faults.draw_cut()
    left, sound = cut or -1, fail or -1

    async def put(events: list[bytes]) -> None:
        nonlocal left, sound
        for event in events:
            if not left:
                raise CutError
            if not sound:
                sound = -1
                raise FailedError
            left -= 1
            sound -= 1
            await send({"type": "http.response.body", "body": event, "more_body": True})

    await send(start(200, EVENTS))
    begun = False
    await put(form.opening())
    try:
        async for delta in deltas(engine, asked, choices):
            if not begun:
                begun = True
                await put(form.begin())
            await put(form.delta(delta))
        await put(form.end(Usage.of(asked, choices), choices))
    except FailedError:
        events = form.failed()
        if events is None or engine.dead:
            raise CutError from None
        await put(events if begun else form.begin()[: asked.n] + events)
    await send({"type": "http.response.body", "body": b""})


def _choices(asked: Ask, head: Head, block_size: int, lora: str | None) -> list[Choice]:
    """A sequence for every choice of every prompt, with its own copy of the transfer parameters."""
    choices: list[Choice] = []
    for at, prompt in enumerate(asked.prompts):
        base = head.id
        if asked.api == "completions":
            base = f"{head.id}-{at}"
        elif asked.api == "responses":
            base = f"{head.id}_0"
        base = f"{base}-{head.ids.next(8)}"
        for index in range(asked.n):
            sequence = Sequence(
                id=base if asked.n == 1 else f"{index}_{base}",
                prompt=prompt,
                sampling=asked.sampling,
                tape=Tape(block_size, lora),
                index=index,
                salt=asked.salt,
                lora=lora,
                params=dict(asked.params) if asked.params else None,
            )
            choices.append(Choice(sequence, at * asked.n + index))
    return choices


async def _leave(receive: Receive, engine: Engine, choices: list[Choice]) -> None:
    await gone(receive)
    for choice in choices:
        engine.abort(choice.sequence)
