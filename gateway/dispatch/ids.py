"""Which token ids go along with a request, so that both legs carry the same prompt and nobody tokenises twice."""

from array import array

import msgspec
from msgspec import Raw

from gateway.fleet.engine import Engine
from gateway.index.sight import Sight
from gateway.prompt.apis import Api
from gateway.prompt.body import Fields, flag


def plan(sight: Sight, api: Api, fields: Fields, prefill: Engine, decode: Engine) -> tuple[Raw | None, bool]:
    """The ids (a JSON list) that stand for the prompt on both legs, and whether the prefill engine returns its own.

    Ours are sent where both engines take them and nothing speaks against trusting them; the engine returns its own
    where we have none and the decode engine can use them, and once in a while to check ours.
    """
    reading, namespace = sight.reading, sight.namespace
    if namespace is None:
        return None, False
    if reading.ids is None:
        return None, fit(api, fields, decode)
    if namespace.prompts.due():
        return None, True
    if namespace.prompts.why or not fit(api, fields, prefill, decode):
        return None, False
    return as_json(reading.ids), False


def as_json(ids: bytes) -> Raw:
    """Ids (uint32) as a JSON list."""
    return Raw(msgspec.json.encode(array("I", ids).tolist()))


def fit(api: Api, fields: Fields, *engines: Engine) -> bool:
    """Whether ids may stand for this prompt: not where the text itself is echoed."""
    return api.generates and all(engine.takes_ids for engine in engines) and not flag(fields, "echo")
