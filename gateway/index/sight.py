"""What is known of one request's prompt: how it reads, and which engines hold the beginning of it."""

from gateway.index.contract import GPU, NOTHING, InFlight, Match
from gateway.index.namespace import Namespace
from gateway.prompt.reading import Reading


class Sight:
    """One prompt, looked up. Token counts are what an engine would not have to compute."""

    __slots__ = ("_exact", "_guess", "_lower", "_others", "bound", "namespace", "reading")

    def __init__(self, reading: Reading, match: Match = NOTHING, namespace: Namespace | None = None) -> None:
        names = namespace.names if namespace is not None else {}
        self.reading = reading
        self.namespace = namespace
        self.bound = names.get(match.session, "")
        """URL of the engine that decoded for this session last; empty if there is none."""
        self._others = match.others
        self._exact: dict[str, int] = {}
        self._lower: dict[str, int] = {}
        self._guess: dict[str, int] = {}
        for (url, _, tier), blocks in match.held.items():
            found = self._exact if tier == GPU else self._lower
            if blocks > found.get(url, 0):
                found[url] = blocks
        for guesses in (match.expected, match.learned):
            for name, blocks in guesses.items():
                url = names.get(name, "")
                if blocks > self._guess.get(url, 0):
                    self._guess[url] = blocks

    @property
    def anything(self) -> bool:
        """Whether some engine holds something of the prompt."""
        return bool(self._exact or self._guess)

    def exact(self, url: str) -> int:
        """Tokens that the engine holds as its own events say."""
        blocks = self._exact.get(url)
        return self.reading.held(blocks) if blocks else 0

    def cached(self, url: str) -> int:
        """Tokens that the engine holds, or will when the placements of the last seconds are done."""
        blocks = max(self._exact.get(url, 0), self._guess.get(url, 0))
        return self.reading.held(blocks) if blocks else 0

    def others(self, url: str) -> InFlight | None:
        """What all other gateways have in flight there."""
        return self._others.get(url)

    def of(self, url: str) -> tuple[int, int, InFlight | None]:
        """Tokens cached, tokens on a lower tier (host memory, disk), and what all other gateways have in flight."""
        blocks = self._lower.get(url)
        return self.cached(url), self.reading.held(blocks) if blocks else 0, self._others.get(url)
