"""An event of a stream on `/v1/chat/completions` or `/v1/completions`, as far as a trail looks into it."""

import msgspec
from msgspec import Raw


class Choice(msgspec.Struct):
    """One of its answers; a `delta` on chat, `text` on completions."""

    delta: dict[str, Raw] | None = None
    text: Raw = Raw(b"null")
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: Raw = Raw(b"null")


class Chunk(msgspec.Struct):
    """One event."""

    choices: list[Choice]
    prompt_token_ids: Raw = Raw(b"null")


decode = msgspec.json.Decoder(Chunk).decode
"""The JSON behind `data: `. Raises `msgspec.DecodeError`."""
