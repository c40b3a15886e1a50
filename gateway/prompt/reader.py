"""Reads prompts in this process: from a request to the token ids that the engine will see, or nothing.

It never guesses: a shape that is not mirrored exactly has no ids, and says why.
"""

import logging
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from gateway.prompt.apis import CHAT, COMPLETIONS, Api
from gateway.prompt.body import Fields, given
from gateway.prompt.messages import Unread
from gateway.prompt.model import Model, UnreadableModel, load
from gateway.prompt.render import chat, value
from gateway.prompt.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_UNREAD = frozenset(
    (
        "truncate_prompt_tokens",
        "truncation_side",
        "suffix",
        "prompt_embeds",
        "chat_template",
        "mm_processor_kwargs",
    )
)
"""Fields that change the prompt in ways that are not mirrored."""

_WARM = "Once upon a time, in 1999: {'a': [1, 2]} — naïve 漢字.\n" * 20

__all__ = ["Prompt", "Reader", "UnreadableModel"]


class Prompt(NamedTuple):
    """What was read of a request."""

    ids: bytes | None
    """Token ids as little-endian uint32; None if they are not known exactly."""
    tokens: int = 0
    why: str = ""
    """Why there are no ids."""


class Reader:
    """The reader of one model's prompts. `kind` says which library tokenises."""

    def __init__(self, model: Model, tokenizer: Tokenizer, defaults: Mapping[str, Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._defaults = defaults
        self.kind = tokenizer.kind

    @classmethod
    def load(cls, folder: Path, *, chat_template: str | None = None, defaults: Mapping[str, Any] | None = None) -> Self:
        """Load a folder; `defaults` are the engine's `--default-chat-template-kwargs`. Raises `UnreadableModel`."""
        model = load(folder, chat_template)
        try:
            tokenizer = Tokenizer(model.tokenizer)
        except ValueError as error:
            raise UnreadableModel(str(error)) from None
        tokenizer.encode(_WARM, special=True)  # the first call sets up for tens of milliseconds
        return cls(model, tokenizer, defaults or {})

    def heavy(self, api: Api, fields: Fields) -> bool:
        """Whether reading belongs into a thread."""
        return len(fields.get(api.prompt, b"")) > self._tokenizer.heavy_bytes

    def read(self, api: Api, fields: Fields) -> Prompt:
        """The ids of a prompt, or why there are none. Never raises for what a client sent."""
        try:
            for name in _UNREAD.intersection(fields):
                if given(fields, name):
                    raise Unread(f"{name} changes the prompt")
            if api is CHAT:
                ids = self._chat(fields)
            elif api is COMPLETIONS:
                ids = self._completion(fields)
            else:
                raise Unread(f"{api.name} prompts are rendered by the engine only")
        except Unread as unread:
            return Prompt(None, why=str(unread))
        except Exception as error:  # a mistake of ours must not fail a request
            log.warning("a %s prompt could not be read: %s", api.name, type(error).__name__)
            return Prompt(None, why=f"reading failed: {type(error).__name__}")
        return Prompt(ids, len(ids) // 4)

    def _chat(self, fields: Fields) -> bytes:
        template = self._model.tool_template if given(fields, "tools") else self._model.template
        if template is None:
            raise Unread("the model has no chat template")
        text = chat(template, fields, self._model.special, self._defaults)
        return self._encode(text, value(fields, "add_special_tokens"), default=False)

    def _completion(self, fields: Fields) -> bytes:
        prompt = value(fields, "prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str) and prompt:
            return self._encode(prompt, value(fields, "add_special_tokens"), default=True)
        if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            try:
                return array("I", prompt).tobytes()
            except OverflowError:
                raise Unread("a token id out of range") from None
        raise Unread("not one prompt")

    def _encode(self, text: str, special: object, default: bool) -> bytes:
        if special is None:
            special = default
        if not isinstance(special, bool):
            raise Unread("add_special_tokens is not true or false")
        try:
            ids = self._tokenizer.encode(text, special)
        except UnicodeEncodeError:
            raise Unread("text that is not unicode") from None
        if not ids:
            raise Unread("it has no tokens")
        return ids
