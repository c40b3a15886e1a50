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
        found = None
        if self.open:
            ends = (
                (at + len(stop), at, stop)
                for stop in self._stops
                if 0 <= (at := self._buffer.find(stop, max(0, self._cut - len(stop) + 1))) < self._cut
            )
            found = min(ends, default=None)
        if found is not None:
            end, at, stop = found
            self.open = False
            return Sewn(self._buffer[self._sent : max(self._sent, end if self._include else at)], stop)
        self.open = self.open and self._alive()
        if self.open and not self._include:
            return Sewn("")
        text, self._sent = self._buffer[self._sent :], len(self._buffer)
        return Sewn(text)

    def end(self) -> str:
        """The second engine has ended: what is still held back."""
        self.open = False
        text, self._sent = self._buffer[self._sent :], len(self._buffer)
        return text
