"""Where the second part of a stream is sewn to the first: text that the first engine held back, and stop strings that
begin in the first part and end in the second.

An engine that looks for stop strings holds back as many characters as one of them could still take, less one
(vLLM's `BaseIncrementalDetokenizer`). The engine that goes on knows nothing of the text before it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Sewn(NamedTuple):
    """What may be sent now, and the stop string that was found."""

    text: str
    stop: str | None = None


class Seam:
    """Text on its way over the cut. `open` while a stop string may still reach over it."""

    __slots__ = ("_buffer", "_cut", "_include", "_sent", "_stops", "open")

    def __init__(self, before: str, held: str, stops: Sequence[str], include: bool) -> None:
        """`before` is all text up to the cut, of which the last, `held`, was not sent; `include`: stop strings are
        part of the answer."""
        longest = max(map(len, stops), default=1)
        self._buffer = before[max(0, len(before) - max(longest - 1, len(held))) :]
        self._cut = len(self._buffer)
        self._sent = self._cut - len(held)
        self._stops = stops
        self._include = include
        self.open = self._alive()

    def _alive(self) -> bool:
        """Whether a stop string that begins before the cut may still end after it."""
        buffer = self._buffer
        return any(
            stop.startswith(buffer[at:])
            for stop in self._stops
            for at in range(max(0, self._cut - len(stop) + 1), self._cut)
        )

    def take(self, text: str) -> Sewn:
        """Text of the second engine has come."""
        self._buffer += text
        if (found := self._reaching(self._buffer)) is not None:
            return found
        self.open = self.open and self._alive()
        if self.open and not self._include:
            return Sewn("")
        return self._rest()

    def end(self, stop: str | None = None) -> Sewn:
        """The second engine has ended, at a stop string of its own if `stop` names one: what is still held back.

        A stop string that the engine cut off may have completed one that began before the cut, which comes first then.
        """
        found = self._reaching(self._buffer + stop) if stop and not self._include else None
        self.open = False
        return found or self._rest()

    def _reaching(self, text: str) -> Sewn | None:
        """What may be sent of `text` if a stop string in it begins before the cut and ends after it."""
        if not self.open:
            return None
        ends = (
            (at + len(stop), at, stop)
            for stop in self._stops
            if 0 <= (at := text.find(stop, max(0, self._cut - len(stop) + 1))) < self._cut
        )
        found = min(ends, default=None)
        if found is None:
            return None
        end, at, stop = found
        self.open = False
        return Sewn(text[self._sent : max(self._sent, end if self._include else at)], stop)

    def _rest(self) -> Sewn:
        """All that was not sent yet."""
        text, self._sent = self._buffer[self._sent :], len(self._buffer)
        return Sewn(text)
