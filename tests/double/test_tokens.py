from hypothesis import given, settings
from hypothesis import strategies as st

from engines.double import kv, tokens
from engines.double.pool import Block
from engines.double.tokens import Detokenizer


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert tokens.decode(tokens.encode(text)) == text.encode("utf-8", "replace").decode()


@settings(deadline=None)
@given(st.text())
def test_ids_are_in_the_vocabulary_and_short(text: str) -> None:
    ids = tokens.encode(text)
    assert all(0 < token < tokens.VOCABULARY for token in ids)
    assert len(text) <= len(ids) * tokens.CHARS_PER_TOKEN


@settings(deadline=None)
@given(st.text(), st.lists(st.integers(min_value=-(2**62), max_value=2**62), min_size=1))
def test_generated_text_is_cut_into_the_tokens_it_came_from(prompt: str, states: list[int]) -> None:
    ids = tokens.encode(prompt)
    for state in states:
        ids.append(kv.choose(state, ids[-1] if ids else tokens.IM_START))
    assert tokens.encode(tokens.decode(ids)) == ids


@settings(deadline=None)
@given(st.text(), st.integers(min_value=1, max_value=7))
def test_a_stream_gives_the_same_text_in_pieces(text: str, step: int) -> None:
    ids, detokenizer = tokens.encode(text), Detokenizer()
    pieces = [detokenizer.feed(ids[at : at + step]) for at in range(0, len(ids), step)]
    plain = text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert "".join(pieces) + detokenizer.feed([], final=True) == plain.encode("utf-8", "replace").decode()


def test_a_turn_of_the_chat_template_is_a_prefix_of_the_next() -> None:
    first = [{"role": "user", "content": "hi"}]
    answer = " kabo riluto"
    before = [*tokens.render(first), *tokens.encode(answer)]
    after = tokens.render([*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "and?"}])
    assert after[: len(before)] == before


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 8), st.data())
def test_the_tape_reads_the_same_however_it_was_written(ids: list[int], size: int, data: st.DataObject) -> None:
    blocks = [Block(at) for at in range(len(ids) // size + 1)]
    whole, parts, again = kv.Tape(size), kv.Tape(size), kv.Tape(size)
    whole.blocks = [Block(at) for at in range(len(blocks))]
    whole.write(ids)
    parts.blocks = again.blocks = blocks
    at = 0
    while at < len(ids):
        step = data.draw(st.integers(1, len(ids)))
        parts.write(ids[at : at + step])
        at += step
    assert parts.state == whole.state
    again.seek(len(ids) - 1)
    again.write(ids[-1:])
    assert again.state == whole.state


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=9, max_size=60), st.integers(0, 100))
def test_one_wrong_block_changes_what_is_read(ids: list[int], where: int) -> None:
    tape = kv.Tape(4)
    tape.blocks = [Block(at) for at in range(len(ids) // 4 + 1)]
    tape.write(ids)
    right = tape.state
    content = tape.blocks[where % (len(ids) // 4)].content
    content.tokens[where % 4] += 1
    tape.seek(len(ids))
    assert tape.state != right
    content.tokens[where % 4] -= 1
    tape.seek(len(ids))
    assert tape.state == right
    content.base += 1
    tape.seek(len(ids))
    assert tape.state != right, "computed on top of something wrong"
