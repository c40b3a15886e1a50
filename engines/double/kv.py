"""What a sequence reads from its KV blocks: one number, on which every generated token depends.

The number folds the content of all blocks in order. A block also remembers the state that its writer had read before
it, so a wrong block makes all that is computed after it wrong as well, for as long as it stays cached.
"""

from collections.abc import Sequence

from engines.double import tokens as vocabulary
from engines.double.pool import Block, Content

_SEED = 0x9E3779B9
_UNWRITTEN = -2


def _seal(before: int, base: int, written: Sequence[int]) -> int:
    """The state after a full block."""
    return hash((before, base, tuple(written)))


def _first(written: list[int], count: int) -> list[int]:
    """The block's first `count` slots; what was never written reads as garbage."""
    return written[:count] + [_UNWRITTEN] * (count - len(written))


class Tape:
    """The KV of one sequence: `count` tokens written to (or read from) `blocks`."""

    __slots__ = ("_before", "_seed", "blocks", "count", "size", "state")

    def __init__(self, size: int, lora: str | None = None) -> None:
        """With an adapter all KV is another."""
        self.size = size
        self._seed = hash((_SEED, *lora.encode())) if lora else _SEED
        self._before = self._seed
        self.blocks: list[Block] = []
        self.count = 0
        self.state = self._seed

    def seek(self, count: int) -> None:
        """Read the first `count` tokens of KV from the blocks, whatever they really hold."""
        before = self._seed
        full, tail = divmod(count, self.size)
        for block in self.blocks[:full]:
            content = block.content
            written = content.tokens
            if len(written) != self.size:
                written = _first(written, self.size)
            before = _seal(before, content.base, written)
        self._before = self.state = before
        self.count = count
        if tail:
            content = self.blocks[full].content
            content.tokens = _first(content.tokens, tail)
            self.state = hash((before, content.base))
            for token in content.tokens:
                self.state = hash((self.state, token))

    def write(self, tokens: Sequence[int]) -> None:
        """Compute the KV of the next tokens; their blocks must be there."""
        size, at, end = self.size, 0, len(tokens)
        while at < end:
            index, offset = divmod(self.count, size)
            content: Content = self.blocks[index].content
            if not offset:
                content.base = self._before
                content.tokens = []
                self.state = hash((self._before, content.base))
            part = tokens[at : at + size - offset]
            content.tokens.extend(part)
            at += len(part)
            self.count += len(part)
            if len(content.tokens) == size:
                self._before = self.state = _seal(self._before, content.base, content.tokens)
            else:
                state = self.state
                for token in part:
                    state = hash((state, token))
                self.state = state


_SYLLABLES = [bytes((c, v)) for c in b"bdfghklmnprstvzj" for v in b"aeiou"]
_PLAIN = [vocabulary.encode(text)[0] for text in _SYLLABLES]
_SPACED = [vocabulary.encode(b" " + text)[0] for text in _SYLLABLES]
_OPEN = frozenset(vocabulary.SINGLES) - {vocabulary.encode(c)[0] for c in "\n\t\r"}


def choose(state: int, previous: int, index: int = 0, eos_one_in: int = 0) -> int:
    """The token that follows: a syllable of the state's hash, or EOS for one state in `eos_one_in`.

    `index` tells the choices of one request apart (n > 1). A word goes on only where the text, read again, would be
    cut into the same tokens.
    """
    draw = hash((state, index, 7))
    if eos_one_in and (draw >> 24) % eos_one_in == 0:
        return vocabulary.IM_END
    new_word = previous in _OPEN or (draw >> 12) % 3 == 0
    return (_SPACED if new_word else _PLAIN)[draw % 80]
