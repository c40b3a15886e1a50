"""The first events of a stream: looked at before the client is sent any of them, never after.

vLLM sends 200 and, for chat, the role before it says in the stream that it could not fetch the KV
(`chat_completion_stream_generator`: the role comes with the engine's first output, whatever that is). Nobody has seen
any of it yet, so it is as good as an error in place of the answer.
"""

from enum import Enum, auto

import msgspec

_OPENINGS = (
    b"event: response.created\n",
    b"event: response.in_progress\n",
    b"event: response.output_item.added\n",
    b"event: response.content_part.added\n",
    b"event: message_start\n",
    b"event: content_block_start\n",
    b"event: ping\n",
    b":",
)
"""What comes before the first token on `/v1/responses` and `/v1/messages`, and comments."""

_ROLE = b'"delta":{"role":"'
_NO_TEXT = b'"content":""'
_ERRORS = (b'data: {"error"', b"event: error\n", b"event: response.failed\n")

HELD_LIMIT = 1 << 20
"""An opening longer than this (bytes) is not looked at."""


class Look(Enum):
    """What the beginning of a stream says."""

    MORE = auto()
    """Nothing yet."""
    BEGUN = auto()
    """There is a token, or whatever else the client should see."""
    FAILED = auto()
    """The engine failed."""


class _Error(msgspec.Struct):
    code: int = 500


class _Failure(msgspec.Struct):
    error: _Error


_failure = msgspec.json.Decoder(_Failure).decode


def look(data: bytes) -> Look:
    """Judge all that has come of a stream so far."""
    start = 0
    while (end := data.find(b"\n\n", start)) >= 0:
        if data.startswith(_ERRORS, start):
            return Look.FAILED if _ours(data[start:end]) else Look.BEGUN
        if not (data.startswith(_OPENINGS, start) or _role(data, start, end)):
            return Look.BEGUN
        start = end + 2
    return Look.MORE if len(data) < HELD_LIMIT else Look.BEGUN


def _role(data: bytes, start: int, end: int) -> bool:
    """Whether an event only says who speaks."""
    at = data.find(_ROLE, start, end)
    return at >= 0 and data.find(_NO_TEXT, at, end) >= 0


def is_error(event: bytes) -> bool:
    """Whether an event tells that the engine failed."""
    return event.startswith(_ERRORS) and _ours(event)


def _ours(event: bytes) -> bool:
    """Whether an error is the engine's and not the client's; those that do not say are the engine's."""
    _, _, body = event.partition(b"data: ")
    try:
        return _failure(body).error.code >= 500
    except msgspec.DecodeError:
        return True
