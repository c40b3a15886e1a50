"""What the hot path needs of a Redis, and the right thing for a URL: one server, one behind sentinels, or a cluster."""

from typing import Any, Protocol

from engines import store
from engines.store import Place
from gateway.index.redis.cluster import Cluster
from gateway.index.redis.link import Link, fixed, primary


class Caller(Protocol):
    """Sends commands on the keys of one tag."""

    async def call(self, commands: bytes, count: int, budget_s: float) -> Any:
        """Send commands in one go and return the last one's answer. Raises `Unavailable`, `ServerError`."""
        ...

    def post(self, commands: bytes, count: int) -> None:
        """Send commands whose answers nobody waits for."""
        ...


class Links(Protocol):
    """Callers by tag."""

    def of(self, tag: bytes) -> Caller: ...

    async def connect(self) -> None:
        """Raises OSError, `ServerError`."""
        ...

    def close(self) -> None: ...


def links_to(place: Place) -> Links:
    """Nothing is connected yet."""
    if place.kind == store.CLUSTER:
        return Cluster(place)
    return Link(place, primary(place) if place.kind == store.SENTINEL else fixed(place.seeds[0]))
