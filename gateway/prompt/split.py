"""Which requests may not be split over two engines.

Such a request goes to one engine whole, without transfer parameters. Every rule was seen on a real engine; what happens
otherwise is its reason. This table is the only place where that is decided.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from gateway.prompt.apis import CHAT, COMPLETIONS, RESPONSES, Api
from gateway.prompt.body import Fields, flag, given, number, value

MEDIA = re.compile(
    rb'"(?:image_url|image|input_image|image_embeds|input_audio|audio_url|audio|video_url|video|input_file)"'
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests of which `applies` is true stay whole; it is not asked where `field` is named and absent."""

    name: str
    reason: str
    applies: Callable[[Api, Fields], bool]
    field: str = ""


def _several(fields: Fields, name: str) -> bool:
    return number(fields, name) not in (None, 1)


def _prompts(fields: Fields) -> bool:
    """Not exactly one prompt, where a list of token ids is one."""
    raw = bytes(fields.get("prompt", b"")).lstrip()
    if not raw.startswith(b"["):
        return False
    if raw[1:].lstrip()[:1].isdigit():
        return False
    prompts = value(fields, "prompt")
    return not isinstance(prompts, list) or len(prompts) != 1


def _media(api: Api, fields: Fields) -> bool:
    raw = bytes(fields.get(api.prompt, b""))
    return b'"type"' in raw and MEDIA.search(raw) is not None


def _one_token(api: Api, fields: Fields) -> bool:
    for name in api.limits:
        if name in fields and (limit := number(fields, name)) is not None:
            return limit <= 1
    return False


RULES = (
    Rule("no prompt", "the API generates nothing, or the prompt is missing", lambda api, f: api.prompt not in f),
    Rule(
        "n", "each of n children pulls blocks that are freed after the first pull", lambda api, f: _several(f, "n"), "n"
    ),
    Rule("best_of", "the same as n", lambda api, f: _several(f, "best_of"), "best_of"),
    Rule(
        "several prompts",
        "one prompt's parameters are applied to every prompt: wrong tokens, and a poisoned cache",
        lambda api, f: api is COMPLETIONS and _prompts(f),
        "prompt",
    ),
    Rule(
        "prompt_logprobs",
        "the decode engine recomputes the whole prompt: the prefill is wasted and its blocks stay pinned",
        lambda api, f: bytes(f["prompt_logprobs"]) != b"null",
        "prompt_logprobs",
    ),
    Rule(
        "echo with logprobs",
        "the same as prompt_logprobs",
        lambda api, f: flag(f, "echo") and (api is CHAT or given(f, "logprobs") or number(f, "logprobs") is not None),
        "echo",
    ),
    Rule(
        "use_beam_search",
        "beams do not use transferred blocks",
        lambda api, f: flag(f, "use_beam_search"),
        "use_beam_search",
    ),
    Rule(
        "prompt_embeds",
        "embeddings have no token ids that two engines agree on",
        lambda api, f: given(f, "prompt_embeds"),
        "prompt_embeds",
    ),
    Rule("suffix", "fill-in-the-middle was never proven over a transfer", lambda api, f: given(f, "suffix"), "suffix"),
    Rule(
        "media",
        "placeholders expand inside the engine: the two legs could disagree on the prompt's length",
        _media,
    ),
    Rule(
        "state in one engine",
        "stored responses live in the engine that made them",
        lambda api, f: api is RESPONSES and (given(f, "previous_response_id") or flag(f, "background")),
    ),
    Rule("one token", "the first token is the whole answer: there is nothing to decode elsewhere", _one_token),
)


def whole(api: Api, fields: Fields) -> str:
    """The name of the first rule that keeps this request whole; empty if it may be split."""
    for rule in RULES:
        if (not rule.field or rule.field in fields) and rule.applies(api, fields):
            return rule.name
    return ""
