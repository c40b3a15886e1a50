"""What a healthy engine double answers: every token is a function of the prompt, so every answer can be judged."""

from dataclasses import dataclass

from engines.double import kv, tokens
from engines.double.pool import Block

BLOCK = 16
"""Tokens per KV block of the doubles: what is generated depends on it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The right answer to one request."""

    pieces: tuple[str, ...]
    """The text of each token, in order."""
    finish: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def truth(prompt: list[int], max_tokens: int, stop: str = "") -> Truth:
    """The answer to a prompt: `max_tokens` tokens, or as many as it takes until `stop` has been said."""
    tape = kv.Tape(BLOCK)
    tape.blocks = [Block(number) for number in range(-(-(len(prompt) + max_tokens) // BLOCK))]
    tape.write(prompt)
    pieces: list[str] = []
    text, last = "", prompt[-1]
    for _ in range(max_tokens):
        last = kv.choose(tape.state, last)
        tape.write([last])
        pieces.append(tokens.decode([last]))
        text += pieces[-1]
        if stop and (found := text.find(stop)) >= 0:
            return Truth(_cut(pieces, found), "stop", len(prompt), len(pieces))
    return Truth(tuple(pieces), "length", len(prompt), len(pieces))


def _cut(pieces: list[str], length: int) -> tuple[str, ...]:
    """The pieces of the first `length` characters; the last one may be a part of a token."""
    kept: list[str] = []
    for piece in pieces:
        if length <= 0:
            break
        kept.append(piece[:length])
        length -= len(piece)
    return tuple(kept)
