"""Event batches in both encodings, of older and newer engines."""

import msgspec
import pytest

from gateway.index.events.batch import AllBlocksCleared, BlockRemoved, BlockStored, decode

encode = msgspec.msgpack.encode
STORED = {
    "type": "BlockStored",
    "block_hashes": [1, 2],
    "parent_block_hash": None,
    "token_ids": [5, 6],
    "block_size": 1,
}


def test_maps_as_published_today() -> None:
    events = [
        {**STORED, "lora_id": None, "medium": "GPU", "lora_name": None, "group_idx": 0, "new": {"x": 1}},
        {"type": "BlockRemoved", "block_hashes": [b"\1" * 32], "medium": "CPU"},
        {"type": "AllBlocksCleared"},
    ]
    batch, unreadable = decode(encode([1.5, events, 3]))
    assert (batch.ts, batch.rank, unreadable) == (1.5, 3, 0)
    stored, removed, cleared = batch.events
    assert isinstance(stored, BlockStored)
    assert (stored.block_hashes, stored.token_ids, stored.medium, stored.group_idx) == ([1, 2], [5, 6], "GPU", 0)
    assert isinstance(removed, BlockRemoved)
    assert removed.block_hashes == [b"\1" * 32]
    assert isinstance(cleared, AllBlocksCleared)


def test_arrays_as_published_before() -> None:
    events = [["BlockStored", [1], None, [5], 1, None, "GPU"], ["BlockRemoved", [1]], ["AllBlocksCleared"]]
    batch, unreadable = decode(encode([1.5, events]))
    assert unreadable == 0
    assert [type(event).__name__.strip("_").removesuffix("Array") for event in batch.events] == [
        "BlockStored",
        "BlockRemoved",
        "AllBlocksCleared",
    ]
    assert isinstance(batch.events[0], BlockStored)
    assert isinstance(batch.events[1], BlockRemoved)
    assert batch.events[0].medium == "GPU"


def test_what_is_not_known_is_passed_over_and_counted() -> None:
    batch, unreadable = decode(encode([1.5, [{"type": "BlockMoved", "to": 7}, STORED, ["Other", 1], 7]]))
    assert unreadable == 3
    assert len(batch.events) == 1


@pytest.mark.parametrize("payload", [b"", b"\xc1", encode({"a": 1}), encode([1]), encode("x")])
def test_what_is_no_batch_is_an_error(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(payload)
