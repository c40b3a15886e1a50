"""The double's tokenizer: bytes in pieces, reversible, without state.

A piece is an optional space and one or two bytes that are not white space, or a single byte of white space. An id says
its piece by arithmetic alone, so any id can be decoded and text that was generated gives the same ids when it comes
back inside a later prompt.
"""

import re
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

IM_START = 1
IM_END = 2
"""Ends a message in the chat template and ends an answer (EOS)."""

SPECIALS = {IM_START: b"<|im_start|>", IM_END: b"<|im_end|>"}

_BYTE = 8
_SPACE_BYTE = _BYTE + 256
_PAIR = _SPACE_BYTE + 256
_SPACE_PAIR = _PAIR + 65536
VOCABULARY = _SPACE_PAIR + 65536
"""Number of token ids."""

SINGLES = range(_BYTE, _PAIR)
"""The ids of pieces with one byte besides the space: the next byte of a word would have gone into them."""

CHARS_PER_TOKEN = 12
"""Most characters that one token can stand for."""

_PIECES = re.compile(rb" ?[^\s]{1,2}|\s")
_SPECIAL = re.compile(rb"(<\|im_start\|>|<\|im_end\|>)")
_SPECIAL_IDS = {text: token for token, text in SPECIALS.items()}
_utf8 = getincrementaldecoder("utf-8")


class _Ids(dict[bytes, int]):
    """Piece -> id, computed once per piece."""

    def __missing__(self, piece: bytes) -> int:
        spaced = len(piece) > 1 and piece[0] == 0x20
        word = piece[1:] if spaced else piece
        if len(word) == 1:
            token = (_SPACE_BYTE if spaced else _BYTE) + word[0]
        else:
            token = (_SPACE_PAIR if spaced else _PAIR) + word[0] * 256 + word[1]
        self[piece] = token
        return token


_ids = _Ids()


def encode(text: str | bytes) -> list[int]:
    """Text -> token ids. Lone surrogates become `?`."""
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if b"<|im_" not in raw:
        return [_ids[piece] for piece in _PIECES.findall(raw)]
    tokens: list[int] = []
    for part in _SPECIAL.split(raw):
        if (special := _SPECIAL_IDS.get(part)) is not None:
            tokens.append(special)
        else:
            tokens.extend(_ids[piece] for piece in _PIECES.findall(part))
    return tokens


def piece(token: int) -> bytes:
    """One id -> its bytes. Ids of no piece give nothing."""
    if token >= _SPACE_PAIR:
        pair = token - _SPACE_PAIR
        return bytes((0x20, pair >> 8, pair & 255)) if pair < 65536 else b""
    if token >= _PAIR:
        pair = token - _PAIR
        return bytes((pair >> 8, pair & 255))
    if token >= _SPACE_BYTE:
        return bytes((0x20, token - _SPACE_BYTE))
    if token >= _BYTE:
        return bytes((token - _BYTE,))
    return SPECIALS.get(token, b"")


def decode(tokens: Iterable[int]) -> str:
    """Token ids -> text, specials included; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(map(piece, tokens)).decode("utf-8", "replace")


class Detokenizer:
    """Ids as they are generated -> text deltas; a character that is split over two tokens comes with the second."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder: IncrementalDecoder = _utf8("replace")

    def feed(self, tokens: Sequence[int], final: bool = False) -> str:
        raw = b"".join([piece(token) for token in tokens if token not in SPECIALS])
        return self._decoder.decode(raw, final)


def _text(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def render(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
) -> list[int]:
    """The chat template: `<|im_start|>role\\ncontent<|im_end|>\\n` for each message, then the assistant's opening.

    Tool definitions and tool calls are rendered as their Python text: enough for the prompt to depend on them.
    """
    tokens: list[int] = []
    if tools:
        tokens += [IM_START, *encode("tools\n" + repr(tools)), IM_END, *encode("\n")]
    for at, message in enumerate(messages):
        text = f"{message.get('role', 'user')}\n{_text(message.get('content'))}"
        if calls := message.get("tool_calls"):
            text += repr(calls)
        tokens += [IM_START, *encode(text)]
        if not (continue_final and at == len(messages) - 1):
            tokens += [IM_END, *encode("\n")]
    if add_generation_prompt and not continue_final:
        tokens += [IM_START, *encode("assistant\n")]
    return tokens
