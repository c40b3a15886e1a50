"""A leg that did not give what it should."""

from gateway.dispatch.exchange import Headers
from gateway.dispatch.verdict import Cause, Leg
from gateway.wire.errors import BadAnswer, ClosedEarly, ConnectFailed, TimedOut, WentStale, WireError


class LegFailed(Exception):
    """One leg failed before the client was sent anything of its answer."""

    def __init__(
        self, leg: Leg, engine: str, cause: Cause, detail: str, reply: "Reply | None" = None, unsent: bool = False
    ) -> None:
        """`unsent`: the request was certainly not sent."""
        super().__init__(f"{engine}: {detail}")
        self.leg = leg
        self.engine = engine
        self.cause = cause
        self.reply = reply
        self.unsent = unsent


class Reply:
    """A complete answer of an engine."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def failed(leg: Leg, engine: str, error: WireError) -> LegFailed:
    """A leg that failed on the wire."""
    return LegFailed(leg, engine, cause_of(error), str(error), unsent=error.stage == "connect")


def cause_of(error: WireError) -> Cause:
    """The word for a failure of the wire."""
    match error:
        case WentStale():
            return "stale"
        case ConnectFailed():
            return "refused"
        case TimedOut():
            return "timeout"
        case ClosedEarly():
            return "closed"
        case BadAnswer():
            return "bad_answer"
        case _:
            return "closed"


def cause_of_status(status: int) -> Cause:
    """The word for an engine's own error."""
    if status in (429, 503):
        return "overloaded"
    return "rejected" if status < 500 else "error"
