"""From generated tokens to text: stop strings, several choices at once, and the sum that `usage` needs."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from engines.double.ask import Ask
from engines.double.engine import Engine
from engines.double.sequence import Sequence
from engines.double.tokens import Detokenizer


class FailedError(Exception):
    """The engine could not serve the request: 500, or an error event in a stream that has begun."""


@dataclass(slots=True)
class Delta:
    """What one choice got since its last delta."""

    choice: int
    text: str
    ids: list[int]
    finish: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class Choice:
    """One choice of the answer, as far as it has come."""

    sequence: Sequence
    number: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    stop_reason: int | str | None = None
    _held: str = ""
    _detokenizer: Detokenizer = field(default_factory=Detokenizer)

    def take(self, fresh: list[int], ended: str | None, ask: Ask, engine: Engine) -> Delta:
        """Enter fresh tokens, the last ones if `ended`; text that may become a stop string is held back."""
        sequence = self.sequence
        text = self._held + self._detokenizer.feed(fresh, final=ended is not None)
        self._held = ""
        self.ids += fresh
        if ask.stop:
            text, ended = self._cut(text, ask, engine, ended)
        if ended is not None and self.finish is None:
            self.finish = ended
            if self.stop_reason is None:
                self.stop_reason = sequence.stop_reason
        self.text += text
        return Delta(self.number, text, fresh, self.finish, self.stop_reason)

    def _cut(self, text: str, ask: Ask, engine: Engine, ended: str | None) -> tuple[str, str | None]:
        keep = max(len(word) for word in ask.stop) - 1
        before = self.text[-keep:] if ask.keep_stop and keep else ""  # sent already: only what is cut off is held back
        whole = before + text
        found = min(((at, word) for word in ask.stop if (at := whole.find(word)) >= 0), default=None)
        if found is not None and len(self.ids) >= ask.sampling.min_tokens:
            at, self.stop_reason = found
            engine.abort(self.sequence, "stop")
            return whole[len(before) : at + len(found[1]) if ask.keep_stop else at], "stop"
        if ended is None and keep and not ask.keep_stop:
            text, self._held = text[:-keep], text[-keep:]
        return text, ended


async def deltas(engine: Engine, ask: Ask, choices: Many[Choice]) -> AsyncIterator[Delta]:
    """What the choices get, as they get it, until all have finished. Raises `FailedError`."""
    if len(choices) == 1:
        choice = choices[0]
        while choice.finish is None:
            fresh = await choice.sequence.next()
            if choice.sequence.finish == "error":
                raise FailedError
            yield choice.take(fresh, choice.sequence.finish, ask, engine)
        return
    ready: asyncio.Queue[tuple[Choice, list[int], str | None]] = asyncio.Queue()

    async def follow(choice: Choice) -> None:
        while True:
            fresh = await choice.sequence.next()
            ended = choice.sequence.finish
            ready.put_nowait((choice, fresh, ended))
            if ended is not None:
                return

    followers = [asyncio.get_running_loop().create_task(follow(choice)) for choice in choices]
    try:
        left = len(choices)
        while left:
            choice, fresh, ended = await ready.get()
            if choice.finish is not None:
                continue
            if ended == "error":
                raise FailedError
            delta = choice.take(fresh, ended, ask, engine)
            left -= delta.finish is not None
            yield delta
    finally:
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of an answer."""

    prompt: int
    completion: int
    cached: int
    created: int
    """prompt tokens that were written to the prefix cache"""

    @classmethod
    def of(cls, ask: Ask, choices: Many[Choice]) -> "Usage":
        """A decode engine reports the prefill engine's cache hits instead of its own, as vLLM does."""
        told = (ask.params or {}).get("remote_prefill_cached_tokens")
        last = choices[-1].sequence
        return cls(
            prompt=sum(map(len, ask.prompts)),
            completion=sum(len(choice.ids) for choice in choices),
            cached=told if isinstance(told, int) else last.cached_tokens,
            created=last.created_tokens,
        )
