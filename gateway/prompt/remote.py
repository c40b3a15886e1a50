"""Has an engine turn a prompt into token ids: exact whatever the model's renderer is, at the price of one more call.

Source: vLLM `entrypoints/scale_out/render/api_router.py`; the routes exist with `--enable-scale-out`.
"""

from array import array
from collections.abc import Iterable

import msgspec

from gateway.fleet.engine import Engine, State
from gateway.prompt.apis import Api
from gateway.prompt.body import Fields, edit
from gateway.wire.errors import WireError

_HEADERS = [(b"content-type", b"application/json")]
_ANSWER_LIMIT = 4 << 20


class _Rendered(msgspec.Struct):
    token_ids: list[int]


_rendered = msgspec.json.Decoder(_Rendered | list[_Rendered]).decode


class Remote:
    """Renders through any engine of a model that is up and can."""

    def __init__(self, engines: Iterable[Engine], model: str, timeout_s: float) -> None:
        self._engines = engines
        self._model = model
        self._timeout_s = timeout_s

    async def __call__(self, api: Api, fields: Fields) -> bytes | None:
        able = [e for e in self._engines if e.renders and e.model == self._model and e.state is State.UP]
        if not able:
            return None
        engine = min(able, key=lambda one: one.prefill_requests + one.decode_requests)
        return await render(engine, api, fields, self._timeout_s)


async def render(engine: Engine, api: Api, fields: Fields, timeout_s: float) -> bytes | None:
    """Token ids of a prompt as little-endian uint32; None if the engine does not give them."""
    target = api.target + b"/render"
    try:
        answer = await engine.pool.request("POST", target, _HEADERS, edit(fields, (), {}), first_byte_s=timeout_s)
        try:
            body = await answer.read(_ANSWER_LIMIT, timeout_s)
        finally:
            answer.close()
        if answer.status != 200:
            return None
        rendered = _rendered(body)
    except (WireError, msgspec.DecodeError):
        return None
    if isinstance(rendered, list):
        if len(rendered) != 1:
            return None
        rendered = rendered[0]
    return array("I", rendered.token_ids).tobytes()
