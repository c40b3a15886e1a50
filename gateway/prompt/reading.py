"""A prompt as the gateway has read it: how long it is, and by which hashes the index knows it."""

import msgspec

from gateway.prompt.apis import Api
from gateway.prompt.body import Fields
from gateway.prompt.hashes import chain, seed

BYTES_PER_TOKEN = 4
"""Of English text, roughly: the measure of length where token ids are not known."""

_TEXT_STEP = 16
"""Tokens that one hash of text stands for: 64 bytes of it."""

_PROMPT_FIELDS = ("tools", "system", "instructions")
"""What stands before the messages in most templates."""


class Reading(msgspec.Struct, frozen=True):
    """One prompt."""

    tokens: int
    """Tokens in; estimated from the size where `ids` is None."""
    hashes: bytes
    """Packed, 8 bytes a step: of KV blocks where `ids` are known, of the text otherwise."""
    step: int
    """Tokens that one hash stands for."""
    ids: bytes | None = None
    """Token ids as little-endian uint32, if they are known exactly."""
    why: str = ""
    """Why they are not."""

    @property
    def prefix(self) -> int:
        """A number that prompts with the same first step share; 0 for one that is shorter."""
        return int.from_bytes(self.hashes[:8], "little")

    def held(self, blocks: int) -> int:
        """Tokens in so many leading blocks that an engine would not compute again; it always computes the last one."""
        return min(blocks, (self.tokens - 1) // self.step) * self.step


def of_ids(ids: bytes, model: str, block_size: int, lora: str = "", salt: str = "") -> Reading:
    """The exact reading of a prompt whose ids are known."""
    return Reading(len(ids) // 4, chain(ids, block_size, seed(model, block_size, lora, salt)), block_size, ids)


def of_text(api: Api, fields: Fields, model: str, lora: str = "", salt: str = "", why: str = "") -> Reading:
    """A reading that follows the text of the prompt's fields: prompts that begin alike have hashes that begin alike.

    Good enough to remember where a conversation went; it says nothing about what an engine holds.
    """
    raw = b"".join(bytes(fields[name]) for name in (*_PROMPT_FIELDS, api.prompt) if name in fields)
    start = seed(model, _TEXT_STEP, lora, salt, "text")
    return Reading(max(1, len(raw) // BYTES_PER_TOKEN), chain(raw, _TEXT_STEP, start), _TEXT_STEP, why=why)
