"""The objective of a request."""

import msgspec


class Slo(msgspec.Struct, frozen=True):
    """What a request has to keep to be in time."""

    ttft_s: float = 2.0
    tpot_s: float = 0.05

    def met(self, ttft_s: float, rest_s: float, answer: int) -> bool:
        """Whether one did: `rest_s` from the first of its `answer` tokens to the last."""
        return ttft_s <= self.ttft_s and rest_s <= self.tpot_s * (answer - 1)
