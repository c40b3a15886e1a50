"""A stream that dies goes on at another engine: which streams can, and what the next engine is asked for.

What was delivered becomes a part of the prompt, as token ids: text read again could be cut into other tokens. Before
that it is proven that the ids say what the client was shown, no more and no less; where they do not, the stream ends.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from gateway.dispatch.exchange import Exchange
from gateway.dispatch.seam import Seam
from gateway.dispatch.trail import Trail
from gateway.fleet.engine import Engine
from gateway.prompt.apis import CHAT, COMPLETIONS, DETOKENIZE, Api
from gateway.prompt.body import Fields, flag, number, value
from gateway.prompt.split import MEDIA
from gateway.wire.errors import WireError

DEFAULT_COMPLETION_TOKENS = 16
"""vLLM's `max_tokens` on completions."""

_CONTEXT = 8
"""Ids of the prompt's end that are read along: some tokenizers drop a space in front of what stands first."""

_CHARACTER = 4
"""Most tokens that one character may be split over."""

_LIMIT = 16 << 20


class Stays(Exception):
    """This stream cannot go on elsewhere; the message says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Streams that name one of `fields` with more than nothing do not go on elsewhere."""

    reason: str
    fields: tuple[str, ...]


RULES = (
    Rule("several answers share one stream", ("n", "best_of")),
    Rule("log probabilities count positions and text from the first token on", ("logprobs", "top_logprobs")),
    Rule("log probabilities of the prompt would be those of a longer one", ("prompt_logprobs",)),
    Rule("the prompt is a part of the answer", ("echo",)),
    Rule("what comes after the answer is a part of the prompt", ("suffix",)),
    Rule("a longer prompt would be cut elsewhere", ("truncate_prompt_tokens",)),
    Rule("embeddings have no ids", ("prompt_embeds",)),
    Rule("they count generated tokens, and those delivered would not count", ("presence_penalty", "frequency_penalty")),
    Rule("they look at generated tokens, and those delivered are a prompt now", ("bad_words", "repetition_detection")),
    Rule("it counts generated tokens", ("thinking_token_budget",)),
    Rule("a grammar starts at its beginning", ("response_format", "structured_outputs")),
    Rule("beams are not streamed token by token", ("use_beam_search",)),
)
"""Beside them: `/v1/responses` and `/v1/messages` (their events are numbered and nested), media (placeholders expand
inside the engine), a tool call that must be made (a grammar), several prompts. And while it runs: streams of which a
parser took something (reasoning, tool calls), engines that give or take no token ids, streams longer than what is
remembered.

Exact are greedy streams, `max_tokens`, `min_tokens`, stop strings (one that spans the cut included), `stop_token_ids`,
`logit_bias`, `repetition_penalty` (it counts the prompt as well), and usage. A `seed` starts again: the text is as
likely as any other, and not the one that an unbroken stream would have had. After a stop string that spans the cut,
usage may count the few tokens that the engine made until it was seen."""

_NAMED = {name: rule.reason for rule in RULES for name in rule.fields}
_NOTHING = (b"null", b"[]", b"{}", b'""', b"false", b"0", b"0.0")


def stays(api: Api, fields: Fields) -> str:
    """Why a stream of this request cannot go on elsewhere; empty if it can, as far as the request says."""
    if api is not CHAT and api is not COMPLETIONS:
        return f"events of {api.name} are numbered and nested"
    for name in fields.keys() & _NAMED.keys():
        raw = bytes(fields[name])
        if raw in _NOTHING or (name in ("n", "best_of") and raw == b"1"):
            continue
        if name == "response_format" and raw.replace(b" ", b"") == b'{"type":"text"}':
            continue
        return _NAMED[name]
    if "tool_choice" in fields and value(fields, "tool_choice") not in (None, "none", "auto"):
        return "a tool call that must be made follows a grammar"
    prompt = bytes(fields.get(api.prompt, b""))
    if api is COMPLETIONS:
        many = prompt.startswith(b"[") and not prompt[1:].lstrip()[:1].isdigit()
        return "several prompts share one stream" if many else ""
    return "media expand inside the engine" if b'"type"' in prompt and MEDIA.search(prompt) else ""


class _Text(msgspec.Struct):
    prompt: str


_text = msgspec.json.Decoder(_Text).decode


async def _read(x: Exchange, engine: Engine, ids: list[int], timeout_s: float) -> str:
    """The text of ids, as the engine reads them. Raises `Stays`."""
    body = msgspec.json.encode({"model": x.request.model, "tokens": ids})
    headers = [(b"content-type", b"application/json")]
    try:
        answer = await engine.pool.request("POST", DETOKENIZE.target, headers, body, first_byte_s=timeout_s)
        try:
            read = await answer.read(_LIMIT, timeout_s)
        finally:
            answer.close()
        if answer.status != 200:
            raise Stays(f"{engine.name} answered {answer.status} to /detokenize")
        return _text(read).prompt
    except (WireError, msgspec.DecodeError) as error:
        raise Stays(f"{engine.name} could not read the ids: {error}") from None


def _stops(fields: Fields) -> list[str]:
    given = value(fields, "stop")
    words: Iterable[object] = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return [word for word in words if isinstance(word, str) and word]


async def prove(x: Exchange, trail: Trail, engine: Engine, timeout_s: float) -> tuple[list[int], Seam]:
    """The generated ids with which `engine` can go on, and how the text is sewn. Raises `Stays`.

    The ids must read as what the client was shown and, where stop strings are looked for, what is held back for them.
    Ids of a character that is not whole are left out: it was not shown, and is made again.
    """
    if trail.lost:
        raise Stays(trail.lost)
    if not trail.prompt:
        raise Stays("the engine did not say how it read the prompt")
    shown, made = trail.text, trail.ids
    context = [int(token) for token in trail.prompt.rsplit(b",", _CONTEXT)[-_CONTEXT:]]
    before = await _read(x, engine, context, timeout_s)
    whole = before
    for cut in range(_CHARACTER + 1):
        ids = made[: len(made) - cut]
        whole = await _read(x, engine, context + ids, timeout_s) if ids else before
        if not (ids and whole.endswith("\ufffd")):
            break
    else:
        raise Stays("its text does not end with a character")
    if len(ids) < len(made) and flag(x.fields, "return_token_ids"):
        raise Stays("the client has the ids of half a character")
    if not whole.startswith(before + shown):
        raise Stays("its ids do not say what was shown")
    held = whole[len(before) + len(shown) :]
    stops = _stops(x.fields)
    include = flag(x.fields, "include_stop_str_in_output")
    hold = 0 if include else max((len(stop) for stop in stops), default=1) - 1
    if len(held) > hold or (shown and len(held) < hold):
        raise Stays("its ids say more than was shown")
    return ids, Seam(shown + held, held, stops, include)


def wants_usage(fields: Fields) -> bool:
    """Whether the client asked for the usage at the end of the stream."""
    options = value(fields, "stream_options") if "stream_options" in fields else None
    return isinstance(options, dict) and options.get("include_usage") is True


def rest(x: Exchange, trail: Trail, made: int) -> bytes:
    """Make of an exchange the one that asks for the rest, `made` tokens being there; returns its prompt's ids.

    Raises `Stays`.
    """
    fields = dict(x.original)
    left = None
    for name in x.api.limits:
        if (limit := number(fields, name)) is not None:
            fields[name] = Raw(b"%d" % (limit - made))
            left = limit - made if left is None else left
    if x.api is COMPLETIONS and left is None:
        left = DEFAULT_COMPLETION_TOKENS - made
        fields["max_tokens"] = Raw(b"%d" % left)
    if left is not None and left < 1:
        raise Stays("nothing is left to be made")
    if (least := number(fields, "min_tokens")) is not None:
        fields["min_tokens"] = Raw(b"%d" % max(0, least - made))
    prompt = array("I", [int(token) for token in trail.prompt.split(b",")])
    prompt.extend(trail.ids)
    x.fields = fields
    x.given = prompt.tobytes()
    x.request = msgspec.structs.replace(
        x.request,
        prompt_tokens=len(prompt),
        output_tokens=left,
        whole=x.request.whole or ("one token" if left == 1 else ""),
    )
    return x.given
