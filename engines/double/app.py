"""The HTTP surface of a double as one bare ASGI app: routing, faults, and the way of a generating request."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from msgspec import json

from engines.double import ask, metrics, tokens
from engines.double.answer import Choice, FailedError, Usage, deltas
from engines.double.chat import Chat
from engines.double.completion import Completion
from engines.double.engine import Engine, EngineDeadError
from engines.double.errors import INTERNAL, RefusedError, bad_body, error_body, no_model, queue_full
from engines.double.faults import FaultError
from engines.double.formats import Format, Head
from engines.double.kv import Tape
from engines.double.messages import Messages
from engines.double.responses import Responses
from engines.double.sequence import Sequence

if TYPE_CHECKING:
    from engines.double.double import Double

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_JSON = b"application/json"
_GENERATING: dict[str, tuple[ask.Api, type[Chat | Completion | Messages | Responses]]] = {
    "/v1/chat/completions": ("chat", Chat),
    "/v1/completions": ("completions", Completion),
    "/v1/messages": ("messages", Messages),
    "/v1/responses": ("responses", Responses),
}
_DIMENSIONS = 8


class _CutError(Exception):
    """The stream is cut here (a fault)."""


class App:
    """Answers for one double, which is asked for its engine at every request."""

    def __init__(self, double: "Double") -> None:
        self._double = double
        self._routes: dict[tuple[str, str], Callable[[dict[str, str], bytes], tuple[int, bytes, bytes]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): lambda *_: (200, b'{"version":"0.32.0"}', _JSON),
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/load"): self._load,
            ("GET", "/kv_event_sources"): self._sources,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("POST", "/reset_prefix_cache"): self._reset,
            ("GET", "/double/control"): self._control,
            ("POST", "/double/control"): self._control,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        raw = await _body(receive)
        if raw is None:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not path.startswith("/double/"):
            self._double.received(method, path, headers, raw)
        generating = _GENERATING.get(path)
        try:
            if method == "POST" and path.startswith("/v1/") and await self._sabotage(receive, send):
                return
            if generating and method == "POST":
                await self._generate(*generating, headers, raw, receive, send)
                return
            route = self._routes.get((method, path))
            if route is None:
                await _no_route(send, path, [verb for verb, known in self._known() if known == path])
                return
            status, body, kind = route(headers, raw)
        except RefusedError as error:
            status, body, kind = error.status, error.body(), _JSON
        except EngineDeadError:
            await _gone(receive)
            return
        except _CutError:
            self._double.server.drop(scope["client"])
            await _gone(receive)
            return
        await _answer(send, status, body, kind)

    def _known(self) -> list[tuple[str, str]]:
        return [*self._routes, *(("POST", path) for path in _GENERATING)]

    async def _sabotage(self, receive: Receive, send: Send) -> bool:
        """Answer (or not) as the faults say; False if the request shall be served."""
        faults = self._double.faults
        if hang := faults.draw_hang():
            if hang == "body":
                await send(_start(200, b"text/event-stream; charset=utf-8"))
            await _gone(receive)
            return True
        if status := faults.draw_error():
            await _answer(send, status, error_body("injected fault", "InternalServerError", status), _JSON)
            return True
        return False

    # Generation.

    async def _generate(
        self,
        api: ask.Api,
        form: type[Chat | Completion | Messages | Responses],
        headers: dict[str, str],
        raw: bytes,
        receive: Receive,
        send: Send,
    ) -> None:
        double, engine = self._double, self._double.engine
        params: Any = None
        try:
            body = ask.parse(raw, headers.get("content-type", ""))
            params = body.get("kv_transfer_params")
            asked = ask.read(api, body, double.model, double.limits)
            if not engine.admits(len(asked.prompts) * asked.n):
                engine.stats.admission_rejections += 1
                raise queue_full()
        except RefusedError as error:
            if error.admitted and isinstance(params, dict) and params.get("do_remote_prefill"):
                engine.reject(params)
            anthropic = api == "messages" and error.admitted
            await _answer(send, error.status, error.anthropic_body() if anthropic else error.body(), _JSON)
            return
        given = headers.get("x-request-id") or double.ids.next()
        prefix = {"chat": "chatcmpl-", "completions": "cmpl-", "messages": "chatcmpl-", "responses": "resp_"}[api]
        if api == "responses":
            given = double.ids.next()
        head = Head(prefix + given, int(time.time()), double.model, double.ids)
        choices = _choices(asked, head, double.limits.block_size)
        for choice in choices:
            engine.submit(choice.sequence)
        leaving = asyncio.get_running_loop().create_task(_leave(receive, engine, choices))
        try:
            if asked.stream:
                await self._stream(engine, asked, choices, form(asked, head), send)
            else:
                await self._whole(engine, asked, choices, form(asked, head), send)
        finally:
            leaving.cancel()
            for choice in choices:
                engine.abort(choice.sequence)

    async def _whole(self, engine: Engine, asked: ask.Ask, choices: list[Choice], form: Format, send: Send) -> None:
        try:
            async for _ in deltas(engine, asked, choices):
                pass
        except FailedError:
            if engine.dead:
                raise EngineDeadError from None
            await _answer(send, INTERNAL[2], error_body(*INTERNAL), _JSON)
            return
        if any(choice.finish == "abort" for choice in choices):
            return
        params = self._double.hand_over([choice.sequence for choice in choices], asked.api)
        await _answer(send, 200, form.whole(Usage.of(asked, choices), choices, params), _JSON)

    async def _stream(self, engine: Engine, asked: ask.Ask, choices: list[Choice], form: Format, send: Send) -> None:
        left = self._double.faults.draw_cut() or -1

        async def put(events: list[bytes]) -> None:
            nonlocal left
            for event in events:
                if not left:
                    raise _CutError
                left -= 1
                await send({"type": "http.response.body", "body": event, "more_body": True})

        await send(_start(200, b"text/event-stream; charset=utf-8"))
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
                raise _CutError from None
            await put(events if begun else form.begin()[: asked.n] + events)
        await send({"type": "http.response.body", "body": b""})

    # Everything else.

    def _health(self, *_: object) -> tuple[int, bytes, bytes]:
        return self._double.faults.health_status, b"", b""

    def _models(self, *_: object) -> tuple[int, bytes, bytes]:
        double, now = self._double, int(time.time())
        permission = {
            "id": f"modelperm-{double.ids.next()}",
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        card = {
            "id": double.model,
            "object": "model",
            "created": now,
            "owned_by": "vllm",
            "root": double.model,
            "parent": None,
            "max_model_len": double.limits.max_model_len,
            "permission": [permission],
        }
        return 200, json.encode({"object": "list", "data": [card]}), _JSON

    def _metrics(self, *_: object) -> tuple[int, bytes, bytes]:
        double = self._double
        page = metrics.render(double.stats, double.limits, double.model)
        return 200, page.encode(), metrics.CONTENT_TYPE.encode()

    def _load(self, *_: object) -> tuple[int, bytes, bytes]:
        return 200, json.encode({"server_load": self._double.stats.busy}), _JSON

    def _sources(self, *_: object) -> tuple[int, bytes, bytes]:
        publisher = self._double.engine.publisher
        return 200, json.encode({"0": publisher.source()} if publisher else {}), _JSON

    def _reset(self, *_: object) -> tuple[int, bytes, bytes]:
        return 200, json.encode({"success": self._double.engine.reset_prefix_cache()}), _JSON

    def _known_model(self, headers: dict[str, str], raw: bytes) -> dict[str, Any]:
        body = ask.parse(raw, headers.get("content-type", ""))
        if body.get("model") and body["model"] != self._double.model:
            raise no_model(body["model"], self._double.model)
        return body

    def _tokenize(self, headers: dict[str, str], raw: bytes) -> tuple[int, bytes, bytes]:
        body = self._known_model(headers, raw)
        if "messages" in body:
            generation = body.get("add_generation_prompt", True)
            final = bool(body.get("continue_final_message"))
            ids = tokens.render(
                body["messages"], tools=body.get("tools"), add_generation_prompt=generation, continue_final=final
            )
        elif isinstance(body.get("prompt"), str):
            ids = tokens.encode(body["prompt"])
        else:
            raise bad_body("missing", "body.prompt", "Field required", body)
        pieces = [tokens.decode([token]) for token in ids] if body.get("return_token_strs") else None
        length = self._double.limits.max_model_len
        answer = {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": pieces}
        return 200, json.encode(answer), _JSON

    def _detokenize(self, headers: dict[str, str], raw: bytes) -> tuple[int, bytes, bytes]:
        body = self._known_model(headers, raw)
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
            raise bad_body("list_type", "body.tokens", "Input should be a valid list", ids)
        return 200, json.encode({"prompt": tokens.decode(ids)}), _JSON

    def _count_tokens(self, headers: dict[str, str], raw: bytes) -> tuple[int, bytes, bytes]:
        body = self._known_model(headers, raw)
        asked = ask.read("messages", {**body, "max_tokens": 1}, self._double.model, self._double.limits)
        count = len(asked.prompts[0])
        answer = {"input_tokens": count, "context_management": {"original_input_tokens": count}}
        return 200, json.encode(answer), _JSON

    def _embeddings(self, headers: dict[str, str], raw: bytes) -> tuple[int, bytes, bytes]:
        body = self._known_model(headers, raw)
        given = body.get("input")
        if given is None:
            raise bad_body("missing", "body.input", "Field required", body)
        parts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
        prompts = [part if isinstance(part, list) else tokens.encode(str(part)) for part in parts]
        data = [{"index": at, "object": "embedding", "embedding": _vector(ids)} for at, ids in enumerate(prompts)]
        count = sum(map(len, prompts))
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
        answer = {
            "id": f"embd-{headers.get('x-request-id') or self._double.ids.next()}",
            "object": "list",
            "created": int(time.time()),
            "model": self._double.model,
            "data": data,
            "usage": usage,
        }
        return 200, json.encode(answer), _JSON

    def _control(self, headers: dict[str, str], raw: bytes) -> tuple[int, bytes, bytes]:
        try:
            body = json.decode(raw) if raw else {}
            return 200, json.encode(self._double.control(body)), _JSON
        except (FaultError, ValueError, TypeError) as error:
            return 400, error_body(str(error), "BadRequestError", 400), _JSON


def _choices(asked: ask.Ask, head: Head, block_size: int) -> list[Choice]:
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
                tape=Tape(block_size),
                index=index,
                salt=asked.salt,
                params=dict(asked.params) if asked.params else None,
            )
            choices.append(Choice(sequence, at * asked.n + index))
    return choices


def _vector(ids: list[int]) -> list[float]:
    """A unit vector that depends on all tokens."""
    raw = [hash((at, *ids)) % 2001 / 1000 - 1 for at in range(_DIMENSIONS)]
    norm = sum(value * value for value in raw) ** 0.5 or 1.0
    return [value / norm for value in raw]


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _gone(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _leave(receive: Receive, engine: Engine, choices: list[Choice]) -> None:
    await _gone(receive)
    for choice in choices:
        engine.abort(choice.sequence)


def _start(status: int, kind: bytes, length: int | None = None, *more: tuple[bytes, bytes]) -> dict[str, Any]:
    headers = list(more)
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if kind:
        headers.append((b"content-type", kind))
    headers.append((b"vary", b"Origin"))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _answer(send: Send, status: int, body: bytes, kind: bytes, *more: tuple[bytes, bytes]) -> None:
    await send(_start(status, kind, len(body), *more))
    await send({"type": "http.response.body", "body": body})


async def _no_route(send: Send, path: str, verbs: list[str]) -> None:
    if verbs:
        await _answer(send, 405, b'{"detail":"Method Not Allowed"}', _JSON, (b"allow", ", ".join(verbs).encode()))
    else:
        await _answer(send, 404, b'{"detail":"Not Found"}', _JSON)
