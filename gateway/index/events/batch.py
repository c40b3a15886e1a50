"""KV event batches as vLLM publishes them, in both encodings.

A batch is `[timestamp, [events], data_parallel_rank]` in msgpack. An event is a map with its type under `type`; older
versions wrote an array that starts with it. Trailing defaults are left out; what is not known is ignored.
Source: vLLM `distributed/kv_events.py`.
"""

from typing import Any

import msgspec

Key = int | bytes
"""An engine's own name of a block: opaque."""

FULL = frozenset((None, "full_attention", "mla_attention", "sink_full_attention"))
"""Kinds of KV cache groups in which every block of a prefix is kept; the others say nothing about prefixes."""


class BlockStored(msgspec.Struct, tag=True):
    block_hashes: list[Key]
    parent_block_hash: Key | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag=True):
    block_hashes: list[Key]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True):
    pass


class _BlockStoredArray(BlockStored, tag="BlockStored", array_like=True):
    pass


class _BlockRemovedArray(BlockRemoved, tag="BlockRemoved", array_like=True):
    pass


class _AllBlocksClearedArray(AllBlocksCleared, tag="AllBlocksCleared", array_like=True):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(msgspec.Struct, array_like=True):
    """What one step of an engine changed. `ts` is the engine's clock, Unix seconds."""

    ts: float
    events: list[Event]
    rank: int | None = None


class _RawBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    rank: int | None = None


_batch = msgspec.msgpack.Decoder(Batch).decode
_raw_batch = msgspec.msgpack.Decoder(_RawBatch).decode
_map = msgspec.msgpack.Decoder(Event).decode
_array = msgspec.msgpack.Decoder(_BlockStoredArray | _BlockRemovedArray | _AllBlocksClearedArray).decode


def decode(payload: bytes) -> tuple[Batch, int]:
    """A batch, and how many of its events could not be read. Raises `msgspec.DecodeError` if nothing of it can."""
    try:
        return _batch(payload), 0
    except msgspec.ValidationError:
        return _piecewise(payload)


def _piecewise(payload: bytes) -> tuple[Batch, int]:
    """Event by event: the older encoding, or one of a newer version among others."""
    raw = _raw_batch(payload)
    events: list[Event] = []
    for event in raw.events:
        first = bytes(event)[0]
        try:
            events.append(_array(event) if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD) else _map(event))
        except msgspec.ValidationError:
            continue
    return Batch(raw.ts, events, raw.rank), len(raw.events) - len(events)
