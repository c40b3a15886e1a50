"""The wire: a lean HTTP/1.1 client that carries both legs to the engines.

`Pool` keeps the connections of one engine, `Pool.request` returns an `Answer` as soon as its head is here, and what
goes wrong is a `WireError`. Bytes go in and bytes come out; nothing here knows what they mean.
"""

from gateway.wire.answer import Answer
from gateway.wire.errors import BadAnswer, ClosedEarly, ConnectFailed, TimedOut, WireError
from gateway.wire.pool import Limits, Pool

__all__ = ["Answer", "BadAnswer", "ClosedEarly", "ConnectFailed", "Limits", "Pool", "TimedOut", "WireError"]
