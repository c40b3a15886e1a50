"""The HTTP surface of a double as one bare ASGI app: routing, faults, and the routes that only look."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec import json

from engines.double import metrics, tokens
from engines.double.asgi import EVENTS, JSON, CutError, Receive, Scope, Send, answer, gone, no_route, read_body, start
from engines.double.ask import read
from engines.double.body import parse
from engines.double.control import carry_out, order, state
from engines.double.engine import EngineDeadError
from engines.double.errors import RefusedError, bad_body, error_body, no_model
from engines.double.faults import FaultError, Hang
from engines.double.generate import ROUTES, generate
from engines.double.process import Process

Reply = tuple[int, bytes, bytes]
"""status, body, content type"""

_EVENT = (
    b'data: {"id":"endless","object":"text_completion","created":0,"model":"m","choices":'
    b'[{"index":0,"text":"","delta":{"content":""},"logprobs":null,"finish_reason":null}]}\n\n'
)
_PAUSE_S = 0.02

CONTROL = "/double/control"
"""Not a route of vLLM's: how the double is told to misbehave."""

_DIMENSIONS = 8


class App:
    """Answers for one double, which is asked for its engine at every request."""

    def __init__(self, double: Process) -> None:
        self._double = double
        self._answered: Counter[tuple[str, int]] = Counter()
        """POSTs by route and first digit of the status."""
        self._routes: dict[tuple[str, str], Callable[[dict[str, str], bytes], Reply]] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): lambda *_: (200, b'{"version":"0.32.0"}', JSON),
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/load"): self._load,
            ("GET", "/kv_event_sources"): self._sources,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("POST", "/reset_prefix_cache"): self._reset,
            ("GET", CONTROL): lambda *_: (200, json.encode(state(double)), JSON),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if method == "POST" and path != CONTROL:
            send = self._counting(path, send)
        raw = await read_body(receive)
        if raw is None:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if path == CONTROL:
            if method == "POST":
                await self._control(raw, send)
                return
        else:
            self._double.received(method, path, headers, raw)
        try:
            if method == "POST" and path.startswith("/v1/") and await self._sabotage(receive, send):
                return
            if method == "POST" and path in ROUTES:
                await generate(self._double, path, headers, raw, receive, send)
                return
            route = self._routes.get((method, path))
            if route is None:
                await no_route(send, path, [verb for verb, known in self._known() if known == path])
                return
            status, body, kind = route(headers, raw)
        except RefusedError as error:
            status, body, kind = error.status, error.body(), JSON
        except EngineDeadError:
            await gone(receive)
            return
        except CutError:
            self._double.server.drop(scope["client"])
            await gone(receive)
            return
        await answer(send, status, body, kind)

    def _counting(self, path: str, send: Send) -> Send:
        route = path if ("POST", path) in self._known() else "none"

        async def counting(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._answered[route, message["status"] // 100] += 1
            await send(message)

        return counting

    def _known(self) -> list[tuple[str, str]]:
        return [*self._routes, *(("POST", path) for path in ROUTES)]

    async def _sabotage(self, receive: Receive, send: Send) -> bool:
        """Answer (or not) as the faults say; False if the request shall be served."""
        faults = self._double.faults
        if hang := faults.draw_hang():
            await _hang(hang, receive, send)
            return True
        if status := faults.draw_error():
            await answer(send, status, error_body("injected fault", "InternalServerError", status), JSON)
            return True
        return False

    def _health(self, *_: object) -> Reply:
        return self._double.faults.health_status, b"", b""

    def _models(self, *_: object) -> Reply:
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
        cards = [
            {
                "id": name,
                "object": "model",
                "created": now,
                "owned_by": "vllm",
                "root": name,
                "parent": parent,
                "max_model_len": double.limits.max_model_len if parent is None else None,
                "permission": [permission],
            }
            for name, parent in {double.model: None, **dict.fromkeys(double.adapters, double.model)}.items()
        ]
        return 200, json.encode({"object": "list", "data": cards}), JSON

    def _metrics(self, *_: object) -> Reply:
        double = self._double
        page = metrics.render([engine.measured() for engine in double.engines], double.limits, double.model)
        page += metrics.answered(self._answered)
        return 200, page.encode(), metrics.CONTENT_TYPE.encode()

    def _load(self, *_: object) -> Reply:
        return 200, json.encode({"server_load": self._double.stats.busy}), JSON

    def _sources(self, *_: object) -> Reply:
        published = {str(rank): engine.publisher for rank, engine in enumerate(self._double.engines)}
        return 200, json.encode({rank: one.source() for rank, one in published.items() if one is not None}), JSON

    def _reset(self, *_: object) -> Reply:
        done = [engine.reset_prefix_cache() for engine in self._double.engines]
        return 200, json.encode({"success": all(done)}), JSON

    def _known_model(self, headers: dict[str, str], raw: bytes) -> dict[str, Any]:
        body = parse(raw, headers.get("content-type", ""))
        if body.get("model") and body["model"] != (name := self._double.named(body)):
            raise no_model(body["model"], name)
        return body

    def _tokenize(self, headers: dict[str, str], raw: bytes) -> Reply:
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
        return 200, json.encode(answer), JSON

    def _detokenize(self, headers: dict[str, str], raw: bytes) -> Reply:
        body = self._known_model(headers, raw)
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
            raise bad_body("list_type", "body.tokens", "Input should be a valid list", ids)
        return 200, json.encode({"prompt": tokens.decode(ids)}), JSON

    def _count_tokens(self, headers: dict[str, str], raw: bytes) -> Reply:
        body = self._known_model(headers, raw)
        asked = read("messages", {**body, "max_tokens": 1}, self._double.named(body), self._double.limits)
        count = len(asked.prompts[0])
        answer = {"input_tokens": count, "context_management": {"original_input_tokens": count}}
        return 200, json.encode(answer), JSON

    def _embeddings(self, headers: dict[str, str], raw: bytes) -> Reply:
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
        return 200, json.encode(answer), JSON

    async def _control(self, raw: bytes, send: Send) -> None:
        try:
            orders = json.decode(raw, type=dict[str, Any])
            order(self._double, orders)
        except (FaultError, ValueError, TypeError) as error:
            await answer(send, 400, error_body(str(error), "BadRequestError", 400), JSON)
            return
        await answer(send, 200, json.encode(state(self._double)), JSON)
        await carry_out(self._double, orders)


def _vector(ids: list[int]) -> list[float]:
    """A unit vector that depends on all tokens."""
    raw = [hash((at, *ids)) % 2001 / 1000 - 1 for at in range(_DIMENSIONS)]
    norm = sum(value * value for value in raw) ** 0.5 or 1.0
    return [value / norm for value in raw]


async def _hang(hang: Hang, receive: Receive, send: Send) -> None:
    """Answer in a way that leaves the client waiting, until it leaves."""
    leaving = asyncio.create_task(gone(receive))
    try:
        if hang != "answer":
            await send(start(200, EVENTS))
        if hang == "half":
            await send({"type": "http.response.body", "body": _EVENT[:60], "more_body": True})
        while hang == "forever" and not leaving.done():
            await send({"type": "http.response.body", "body": _EVENT, "more_body": True})
            await asyncio.wait([leaving], timeout=_PAUSE_S)
        await leaving
    finally:
        leaving.cancel()
