"""The ledger: engines' names to our hashes, copies, holes, adapters, salts and media."""

from array import array
from itertools import takewhile
from random import Random
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.index.contract import Change, Removed, Stored
from gateway.index.events.batch import BlockRemoved, BlockStored
from gateway.index.events.ledger import Ledger
from gateway.prompt.reading import of_ids
from tests.index.naive import Naive, blocks
from tests.index.test_contract import A

SIZE = 4


def ids(*tokens: int) -> bytes:
    return array("I", tokens).tobytes()


def stored(keys: list[int], parent: int | None, tokens: list[int], **more: object) -> BlockStored:
    return BlockStored(list(keys), parent, tokens, SIZE, **more)  # type: ignore[arg-type]


def hashes(changes: list[Change]) -> bytes:
    return b"".join(change.hashes for change in changes)


def test_blocks_get_the_hashes_of_the_prompt_that_they_are_part_of() -> None:
    ledger = Ledger("m", SIZE)
    first = ledger.stored(stored([10, 11], None, [1, 2, 3, 4, 5, 6, 7, 8]))
    second = ledger.stored(stored([12], 11, [9, 10, 11, 12]))
    whole = of_ids(ids(*range(1, 13)), "m", SIZE).hashes
    assert hashes(first) + hashes(second) == whole
    assert first == [Stored(None, whole[:16])]
    assert second == [Stored(whole[8:16], whole[16:])]
    assert ledger.removed(BlockRemoved([11])) == [Removed(whole[8:16])]


def test_adapters_salts_and_media_have_hashes_of_their_own() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]

    def first(**more: object) -> bytes:
        return hashes(Ledger("m", SIZE).stored(stored([1, 2], None, tokens, **more)))

    plain = of_ids(ids(*tokens), "m", SIZE).hashes
    assert first() == plain == first(extra_keys=[None, None])
    lora = of_ids(ids(*tokens), "m", SIZE, lora="l").hashes
    assert first(lora_name="l", extra_keys=[("l",), ("l",)]) == lora != plain
    salted = of_ids(ids(*tokens), "m", SIZE, salt="s").hashes
    assert first(extra_keys=[("s",), None]) == salted != plain
    both = of_ids(ids(*tokens), "m", SIZE, "l", "s").hashes
    assert first(lora_name="l", extra_keys=[("l", "s"), ("l",)]) == both
    named_alike = of_ids(ids(*tokens), "m", SIZE, "l", "l").hashes
    assert first(lora_name="l", extra_keys=[("l", "l"), ("l",)]) == named_alike != lora
    media = first(extra_keys=[None, [["image", 3]]])
    assert media[:8] == plain[:8]
    assert media[8:] != plain[8:]
    assert first(extra_keys=[[["image", 3]], None])[8:] not in (plain[8:], media[8:])


def test_a_block_goes_with_its_last_copy() -> None:
    ledger = Ledger("m", SIZE)
    event = stored([1], None, [1, 2, 3, 4])
    assert ledger.stored(event)
    assert not ledger.stored(event)
    assert not ledger.removed(BlockRemoved([1]))
    assert ledger.removed(BlockRemoved([1]))
    assert not ledger.removed(BlockRemoved([1]))
    assert len(ledger) == 0


def test_a_block_whose_parent_was_never_told_is_an_orphan() -> None:
    ledger = Ledger("m", SIZE)
    assert not ledger.stored(stored([2], 1, [1, 2, 3, 4]))
    assert (ledger.orphans, len(ledger)) == (1, 0)


def test_a_cleared_ledger_holds_nothing() -> None:
    ledger = Ledger("m", SIZE)
    ledger.stored(stored([1], None, [1, 2, 3, 4]))
    ledger.stored(stored([1], None, [1, 2, 3, 4]))
    ledger.clear()
    assert not ledger.everything()
    assert ledger.stored(stored([1], None, [1, 2, 3, 4]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_an_index_that_was_lost_becomes_equal_again(seed: int) -> None:
    """Random stores and removals with holes; now and then the index is emptied and stored again from the ledger."""
    pick = Random(seed)
    ledger, index = Ledger("m", SIZE), Naive()
    index.open(A)
    names: dict[int, tuple[int | None, int, bytes]] = {}  # engine's name -> parent's name, depth, tokens so far
    held: set[int] = set()
    for _ in range(150):
        kind = pick.random()
        if kind < 0.55:
            parent = pick.choice([None, *held]) if held else None
            tokens = names[parent][2] if parent is not None else b""
            for _ in range(pick.randrange(1, 5)):
                tokens += ids(*(pick.randrange(2) for _ in range(SIZE)))
                name = crc32(tokens)
                names[name] = (parent, len(tokens) // (4 * SIZE), tokens)
                if name not in held:
                    event = stored([name], parent, list(array("I", tokens[-4 * SIZE :])))
                    assert index.apply(A, ledger.stored(event))
                    held.add(name)
                parent = name
        elif kind < 0.95 and held:
            gone = pick.sample(sorted(held), min(len(held), pick.randrange(1, 4)))
            held -= set(gone)
            index.apply(A, ledger.removed(BlockRemoved(list(gone))))
        else:
            index.open(A)
            assert index.apply(A, ledger.everything())
        for name in pick.sample(sorted(names), min(len(names), 5)):
            prompt = of_ids(names[name][2], "m", SIZE).hashes
            chain = [name]
            while (parent := names[chain[-1]][0]) is not None:
                chain.append(parent)
            depth = len(list(takewhile(held.__contains__, reversed(chain))))
            assert index.match(prompt).get(A, 0) == depth
            assert len(blocks(prompt)) == names[name][1]
