"""The clock on transfer parameters: good once, and only well inside the prefill engine's lease."""

from msgspec import Raw


class Stale(Exception):
    """The lease is (nearly) over: the blocks may be reused before a decode engine has read them."""


class Used(Exception):
    """The parameters were given out before: the prefill engine has freed the blocks since."""


class Transfer:
    """What a prefill engine returned for the decode engine to fetch. Times are the loop's, in seconds."""

    __slots__ = ("_params", "_used", "deadline", "ends_s", "prompt_tokens")

    def __init__(self, params: Raw, prompt_tokens: int, answered_s: float, lease_s: float, margin_s: float) -> None:
        self._params = params
        self._used = False
        self.prompt_tokens = prompt_tokens
        self.ends_s = answered_s + lease_s
        self.deadline = self.ends_s - margin_s

    def left_s(self, now_s: float) -> float:
        """Seconds in which a read is safe; negative when it is too late."""
        return self.deadline - now_s

    def take(self, now_s: float) -> Raw:
        """The parameters, once. Raises `Used` or `Stale`."""
        if self._used:
            raise Used
        if self.left_s(now_s) <= 0:
            raise Stale
        self._used = True
        return self._params

    def unsent(self) -> None:
        """What was taken was certainly not sent to anybody: it is as good as before."""
        self._used = False

    @property
    def sent(self) -> bool:
        """Whether somebody may have been told of it."""
        return self._used

    def fresh(self, now_s: float) -> bool:
        """Whether `take` would succeed."""
        return not self._used and self.left_s(now_s) > 0
