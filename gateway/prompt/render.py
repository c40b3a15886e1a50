"""From a chat request to the prompt's text.

Source: vLLM `entrypoints/openai/chat_completion/protocol.py` (`build_chat_params`), `renderers/hf.py`; transformers
`utils/chat_template_utils.py` (`render_jinja_template`).
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.prompt.body import Fields
from gateway.prompt.environment import ChatTemplate
from gateway.prompt.messages import Message, Unread, conversation, tools, without_developer

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "

_HANDLED = frozenset(("documents", "add_generation_prompt", "continue_final_message", "reasoning_effort"))
_TRANSFORMERS = frozenset(
    (
        "conversation",
        "tools",
        "chat_template",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "processor_kwargs",
        "messages",
        *_HANDLED,
    )
)
"""Arguments of `apply_chat_template` itself, which a client could set in `chat_template_kwargs`."""

_decode = msgspec.json.Decoder().decode


def value(fields: Fields, name: str) -> Any:
    """A field's value; numbers that only Python can hold included. Raises `Unread`."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return _decode(raw)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, RecursionError):
        raise Unread(f"{name} cannot be decoded") from None
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError):
        raise Unread(f"{name} cannot be decoded") from None


def _flag(fields: Fields, name: str, default: bool) -> bool:
    found = value(fields, name) if name in fields else None
    if found is None:
        return default
    if not isinstance(found, bool):
        raise Unread(f"{name} is not true or false")
    return found


class _Options(NamedTuple):
    """What a request says about its prompt beside the messages."""

    variables: Mapping[str, Any] = {}
    begin: bool = True
    """Whether the prompt ends with the beginning of an answer."""
    resume: bool = False
    """Whether the last message is to be continued."""
    tools: list[Message] | None = None
    documents: list[Any] | None = None


_PLAIN = _Options()
_OPTIONS = frozenset(
    (
        "chat_template_kwargs",
        "add_generation_prompt",
        "continue_final_message",
        "tools",
        "documents",
        "reasoning_effort",
    )
)


def _options(fields: Fields) -> _Options:
    own = value(fields, "chat_template_kwargs") or {}
    if not isinstance(own, dict) or own.keys() & _TRANSFORMERS:
        raise Unread("chat_template_kwargs with arguments of the tokenizer's own")
    begin = _flag(fields, "add_generation_prompt", True)
    resume = _flag(fields, "continue_final_message", False)
    if begin and resume:
        raise Unread("it begins a message and continues one")
    documents = value(fields, "documents")
    if documents is not None and not (isinstance(documents, list) and all(isinstance(d, dict) for d in documents)):
        raise Unread("documents are not a list of objects")
    effort = value(fields, "reasoning_effort")
    more: dict[str, Any] = {"reasoning_effort": effort}
    if effort is not None and "enable_thinking" not in own:
        more["enable_thinking"] = effort != "none"
    return _Options(_set(own | _set(more)), begin, resume, tools(value(fields, "tools")), documents)


def chat(template: ChatTemplate, fields: Fields, special: Mapping[str, str], defaults: Mapping[str, Any]) -> str:
    """The prompt's text. Raises `Unread`, also where the template refuses."""
    options = _PLAIN if _OPTIONS.isdisjoint(fields) else _options(fields)
    messages = conversation(value(fields, "messages"), template.parts)
    if not template.developer:
        messages = without_developer(messages)
    merged = {**defaults, **options.variables}
    variables: dict[str, Any] = {
        **special,
        **{name: given for name, given in merged.items() if name in template.variables},
        "messages": messages,
        "tools": options.tools,
        "documents": options.documents,
        "add_generation_prompt": options.begin,
    }
    final = _tagged(messages, template) if options.resume else ""
    try:
        text = template.render(variables)
    except Exception as error:  # a template may fail in any way; the engine then refuses the request
        raise Unread(f"the template refuses it: {type(error).__name__}") from None
    if options.resume:
        text = _cut(text, final)
    if not text:
        raise Unread("it renders to nothing")
    return text


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what counts as not given."""
    return {name: given for name, given in values.items() if given is not None and given != "auto"}


def _tagged(messages: list[Message], template: ChatTemplate) -> str:
    """Mark the end of the last message; returns its text."""
    content = messages[-1].get("content")
    if content is None or "content" not in template.source:
        raise Unread("there is nothing to continue")
    if isinstance(content, str):
        messages[-1]["content"] = content + _TAG
        return content
    if not content:
        raise Unread("there is nothing to continue")
    text: str = content[-1]["text"]
    content[-1]["text"] = text + _TAG
    return text


def _cut(text: str, final: str) -> str:
    """The text up to the mark; without trailing space where the template took it away behind the mark."""
    mark = _TAG.strip()
    if final.strip() not in text or mark not in text:
        raise Unread("the template drops the message that is to be continued")
    at = text.rindex(mark)
    return text[:at] if text[at : at + len(_TAG)] == _TAG else text[:at].rstrip()
