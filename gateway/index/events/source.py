"""Where engines publish KV events, as they say themselves."""

from typing import NamedTuple
from urllib.parse import urlsplit

import httpx


class Source(NamedTuple):
    """Where the events of one data-parallel rank are."""

    engine: str
    """The engine's URL."""
    rank: int
    endpoint: str
    replay_endpoint: str = ""
    topic: str = ""


async def sources(engine: str, http: httpx.AsyncClient) -> list[Source]:
    """Ask an engine where it publishes; empty if it does not. Raises `httpx.HTTPError`."""
    answer = await http.get("/kv_event_sources")
    told = answer.json() if answer.status_code == 200 else {}
    host = urlsplit(engine).hostname or "127.0.0.1"
    return [
        Source(
            engine,
            int(rank),
            _reachable(one["endpoint"], host),
            _reachable(one.get("replay_endpoint") or "", host),
            one.get("topic") or "",
        )
        for rank, one in told.items()
        if isinstance(one, dict) and one.get("enable_kv_cache_events", True) and one.get("endpoint")
    ]


def _reachable(endpoint: str, host: str) -> str:
    """An endpoint as we reach it: the engine binds `*`, and that is on its own host."""
    name = f"[{host}]" if ":" in host else host
    return endpoint.replace("//*", f"//{name}").replace("//0.0.0.0", f"//{name}").replace("//[::]", f"//{name}")
