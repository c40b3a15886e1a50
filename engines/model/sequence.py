"""One sequence in a modelled engine."""

from collections.abc import Sequence as Many


class Sequence:
    """A prompt to compute or to pull, and tokens to generate.

    `names` are the full blocks of prompt and answer in order, as far as anybody will ever ask for them.
    """

    __slots__ = (
        "answer",
        "arrived_s",
        "blocks",
        "cached",
        "done",
        "ends_at",
        "filled",
        "first_s",
        "granted",
        "last_s",
        "names",
        "owner",
        "prompt",
        "pulled",
        "waits",
    )

    def __init__(self, owner: object, prompt: int, answer: int, names: Many[int], waits: bool = False) -> None:
        self.owner = owner
        self.prompt = prompt
        """Tokens."""
        self.answer = answer
        """Tokens, at least 1."""
        self.names = names
        self.waits = waits
        """Its prompt comes from another engine."""
        self.arrived_s = 0.0
        self.cached = 0
        """Tokens that were cached here when it was admitted."""
        self.granted = 0
        """Tokens that count as cached here, whatever the blocks say (what others assume of engines, to compare)."""
        self.done = 0
        """Prompt tokens computed, pulled or cached."""
        self.pulled = 0
        """Tokens that came from another engine."""
        self.blocks = 0
        """Blocks it holds."""
        self.filled = 0
        """Of them, how many have a name."""
        self.ends_at = 0
        """The step in which its last token comes."""
        self.first_s = 0.0
        self.last_s = 0.0
