"""Reads a shard for a person: every node, in pages, so that nobody waits long behind it."""

from collections.abc import AsyncIterator
from struct import iter_unpack
from typing import Any

from gateway.index.inspect import Run, name
from gateway.index.redis.shard import Shard, unpacked

_PAGE = 500


async def survey(client: Any, shard: Shard) -> AsyncIterator[Run]:
    """The nodes of a shard; a node that changes meanwhile may be seen twice."""
    meta = await client.hgetall(shard.meta)
    holders = {
        int.from_bytes(field[1:], "big"): name(*unpacked(value[12:]))
        for field, value in meta.items()
        if field[:1] == b"s"
    }
    cursor = 0
    while True:
        cursor, nodes = await client.hscan(shard.nodes, cursor, count=_PAGE)
        for head, node in nodes.items():
            size = node[0]
            held = {}
            for slot, mask in iter_unpack("<2sI", node[8 * size - 7 :]):
                holder = holders.get(int.from_bytes(slot, "big"))
                if holder is not None and mask:
                    held[holder] = mask.bit_count()
            yield Run(head.hex(), size, held)
        if not cursor:
            return
