"""What can go wrong between us and an engine, typed by what the caller may do about it."""

from typing import Literal

Stage = Literal["connect", "send", "head", "first_byte", "body"]
"""How far an exchange had come: waiting for a connection or opening one; the request not all written yet; the answer's
head begun and not complete; all written and nothing answered; the answer's body."""


class WireError(Exception):
    """An exchange failed. `stage` says how far it had come, `answered` whether any byte of an answer had arrived."""

    def __init__(self, message: str, stage: Stage, *, answered: bool = False) -> None:
        super().__init__(message)
        self.stage: Stage = stage
        self.answered = answered


class ConnectFailed(WireError):
    """No connection: refused, unreachable, TLS failure, connect timeout, closed pool. Nothing was sent."""


class ClosedEarly(WireError):
    """The connection closed before the answer was complete."""


class WentStale(ClosedEarly):
    """A kept connection was closed before it answered anything, and the request was not to be sent twice."""


class TimedOut(WireError):
    """A deadline passed; `stage` says which. At `connect` nothing was sent."""


class BadAnswer(WireError):
    """Not HTTP/1.x as we take it, a head that is too large, or a body over the caller's limit."""
