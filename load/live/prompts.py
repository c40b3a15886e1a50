"""Prompts of a trace: blocks of equal names become equal tokens, so what a replay takes for cached is cached.

A block that holds an answer is what was really answered, for everyone whose prompt contains it.
"""

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from load.replay.trace import Ask

IDS = range(1000, 8000)
"""Token ids that every vocabulary has and that steer nothing."""


class BadTokenizer(ValueError):
    """There is no tokenizer that text can be made with; the message says what is wanted."""


class Form(Protocol):
    """What prompts are made of and how they are sent."""

    ids: Sequence[int]
    """Token ids to draw from."""

    def written(self, ids: Sequence[int]) -> str | list[int]:
        """A prompt as it stands in a request."""
        ...

    def read(self, text: str) -> Sequence[int]:
        """Token ids of an answer that came without them."""
        ...


class Ids:
    """Prompts as token ids: exact with any model, and nobody tokenises."""

    ids: Sequence[int] = IDS

    def written(self, ids: Sequence[int]) -> list[int]:
        return list(ids)

    def read(self, text: str) -> Sequence[int]:
        return ()


class Words:
    """Prompts as text of exactly so many tokens: words that are one token each, wherever they stand.

    Raises `BadTokenizer`.
    """

    _TRIED = 64

    def __init__(self, folder: Path) -> None:
        import tokenizers

        file = folder / "tokenizer.json" if folder.is_dir() else folder
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare exceptions
            raise BadTokenizer(f"{file}: {error}: give a folder with a tokenizer.json") from None
        own = self._tokenizer
        found = []
        every = sorted(own.get_vocab(with_added_tokens=False).values())
        for token, text in zip(every, own.decode_batch([[token] for token in every], False), strict=True):
            if text[:1] == " " and text[1:].isascii() and text[1:].isalpha() and self.read(text * 2) == [token] * 2:
                found.append(token)
                if len(found) == len(IDS):
                    break
        self.ids: Sequence[int] = found
        chance = random.Random(0)
        if len(found) < self._TRIED or not all(self._keeps(chance) for _ in range(self._TRIED)):
            raise BadTokenizer(f"{file}: its words do not stay single tokens in a text: leave --tokenizer out")

    def _keeps(self, chance: random.Random) -> bool:
        ids = chance.choices(self.ids, k=32)
        return self.read(self.written(ids)) == ids

    def written(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def read(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class Prompts:
    """The prompts of a trace's requests, made when they are wanted."""

    def __init__(self, asks: Sequence[Ask], block_tokens: int, salt: str, form: Form) -> None:
        """Prompts of another `salt` share nothing with these."""
        self._asks = asks
        self._size = block_tokens
        self._salt = salt
        self._form = form
        self._followed = {ask.after for ask in asks}
        self._said: dict[int, array[int]] = {}
        """Prompt and answer of requests that others follow."""
        count = Counter(name for ask in asks for name in set(ask.names))
        self._several = {name for name, times in count.items() if times > 1}
        self._blocks: dict[int, array[int]] = {}

    def of(self, index: int) -> "array[int]":
        """Token ids: blocks by their names, where nobody has said yet what they hold by chance; then a rest of its own.

        What stands in no block yet goes on where the request that it follows ended.
        """
        ask, size = self._asks[index], self._size
        said = self._said.get(ask.after, array("I"))[: ask.prompt]
        prompt = array("I")
        for name in ask.names[: ask.prompt // size]:
            block = self._blocks.get(name)
            if block is None:
                block = said[len(prompt) : len(prompt) + size]
                block.extend(self._chance(str(name))[len(block) :])
                self._keep(name, block)
            prompt += block
        prompt += said[len(prompt) :]
        missing = ask.prompt - len(prompt)
        while missing > 0:
            more = self._chance(f"rest {index} {missing}")[:missing]
            prompt.extend(more)
            missing -= len(more)
        return prompt

    def answered(self, index: int, prompt: "array[int]", answer: Sequence[int], text: str) -> None:
        """What came back, as ids or, failing that, as text."""
        ask, size = self._asks[index], self._size
        if index not in self._followed and not any(name in self._several for name in ask.names):
            return
        whole = prompt + array("I", answer or self._form.read(text))
        for block in range(ask.prompt // size, min(len(ask.names), len(whole) // size)):
            self._keep(ask.names[block], whole[block * size : (block + 1) * size])
        if index in self._followed:
            self._said[index] = whole

    def written(self, ids: "array[int]") -> str | list[int]:
        """As it stands in a request."""
        return self._form.written(ids)

    def _keep(self, name: int, block: "array[int]") -> None:
        if name in self._several:
            self._blocks.setdefault(name, block)

    def _chance(self, name: str) -> list[int]:
        return random.Random(f"{self._salt} {name}").choices(self._form.ids, k=self._size)
