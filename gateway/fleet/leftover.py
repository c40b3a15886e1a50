"""KV that was prefilled for a decode engine that will not come for it: it keeps its place until the lease ends."""

from collections import deque


class Leftover:
    """Of one prefill engine. Leases of one engine are of one length, so they end in the order in which they began."""

    __slots__ = ("_held", "_tokens")

    def __init__(self) -> None:
        self._held: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def add(self, tokens: int, until_s: float) -> None:
        """So many tokens of KV stay until then (the event loop's time)."""
        self._held.append((until_s, tokens))
        self._tokens += tokens

    def tokens(self, now_s: float) -> int:
        """Tokens that are still there."""
        held = self._held
        while held and held[0][0] <= now_s:
            self._tokens -= held.popleft()[1]
        return self._tokens

    def clear(self) -> None:
        """The engine's process has ended, and all with it."""
        self._held.clear()
        self._tokens = 0

    def __bool__(self) -> bool:
        return bool(self._held)
