"""How much of its KV memory an engine's requests share: a system prompt that a hundred requests hold is there once."""

WEIGHT = 0.5
"""Of the newest look."""

_FEW, _MANY = 0.1, 0.9
"""Shares of memory in use between which a look tells something; beyond, requests wait that hold nothing yet."""


class Sharing:
    """`factor`: tokens of prompts that fit into room for one, at least 1; from what is booked and what is in use."""

    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0

    def see(self, booked: int, usage: float, room: int) -> None:
        """The requests being decoded have prompts of `booked` tokens, and `usage` of memory for `room` is in use."""
        if room and _FEW < usage < _MANY:
            self.factor += WEIGHT * (max(1.0, booked / (usage * room)) - self.factor)
