"""Every test of the wire runs on both event loops; a peer and pools that clean up after themselves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from gateway.wire import Limits, Pool
from tests.wire.peer import Peer, Script, closed

type_of_factory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, type_of_factory]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """`await serve(script)` starts a peer; all are stopped at the end."""
    peers: list[Peer] = []

    async def start(script: Script, **kwargs: Any) -> Peer:
        peer = Peer(script)
        await peer.start(**kwargs)
        peers.append(peer)
        return peer

    yield start
    for peer in peers:
        await peer.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Pool]]:
    """`connect(peer.url, connections=2)` makes a pool; at the end no slot may be taken."""
    pools: list[Pool] = []

    def make(url: str, **limits: Any) -> Pool:
        pools.append(Pool(url, limits=Limits(**limits)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
        await closed(pool)
        assert pool.busy == 0, pool
        assert pool.idle == 0, pool
