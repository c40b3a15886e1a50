"""Bodies keep their bytes; what steers an engine never comes from a client."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.prompt.body import STEERING, edit, flag, number, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_unknown_fields_pass_unchanged(body: dict[str, object]) -> None:
    expected = {name: value for name, value in body.items() if name not in STEERING}
    assert json.loads(edit(parse(json.dumps(body).encode()), (), {})) == expected


@pytest.mark.parametrize("number_text", ["12345678901234567890123", "1.0", "-0.0", "1e400", "1E5", "0.1000"])
def test_numbers_keep_their_digits(number_text: str) -> None:
    assert edit(parse(b'{"x":' + number_text.encode() + b"}"), (), {}) == b'{"x":' + number_text.encode() + b"}"


@pytest.mark.parametrize("name", sorted(STEERING))
def test_steering_fields_are_removed_however_they_are_spelt(name: str) -> None:
    escaped = "".join(f"\\u{ord(c):04x}" for c in name)
    raw = f'{{"{name}": {{"a": 1}}, "{escaped}": 2, "model": "m"}}'.encode()
    assert set(parse(raw)) == {"model"}


def test_a_steering_name_inside_text_is_left_alone() -> None:
    raw = b'{"messages":[{"role":"user","content":"\\"kv_transfer_params\\": {}"}]}'
    assert edit(parse(raw), (), {}) == raw


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"3", b'{"a":1', b'{"a":NaN}', b'{"a":1}x', b'\xef\xbb\xbf{"a":1}', b'{"a":"\xff"}', b"{'a':1}"],
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(raw)
    assert caught.value.status == 400


def test_deep_nesting_is_refused_not_fatal() -> None:
    with pytest.raises(ApiError):
        parse(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize(
    ("text", "expected"), [("2", 2), ('"2"', 2), ("2.0", 2), ("true", None), ('"x"', None), ("1e999", None)]
)
def test_numbers_are_read_as_laxly_as_the_engine(text: str, expected: int | None) -> None:
    assert number(parse(f'{{"n":{text}}}'.encode()), "n") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("1", True), ('"true"', True), ("false", False), ("null", False)]
)
def test_flags_are_read_as_laxly_as_the_engine(text: str, expected: bool) -> None:
    assert flag(parse(f'{{"stream":{text}}}'.encode()), "stream") is expected


@given(st.text(string.printable))
def test_any_text_is_either_refused_or_kept(text: str) -> None:
    try:
        fields = parse(text.encode())
    except ApiError:
        return
    assert edit(fields, (), {})
