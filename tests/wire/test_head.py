"""Nothing that a caller gives becomes another request than the one it named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.head import render


def test_the_head() -> None:
    assert render("GET", b"/x", b"e:1", [], 0) == b"GET /x HTTP/1.1\r\nhost: e:1\r\n\r\n"
    assert render("POST", b"/x", b"e:1", [(b"A", b"b")], 3) == (
        b"POST /x HTTP/1.1\r\nhost: e:1\r\nA: b\r\ncontent-length: 3\r\n\r\n"
    )
    assert render("GET", b"/", b"e", [], 2).endswith(b"\r\ncontent-length: 2\r\n\r\n")
    assert render("POST", b"/", b"e", [], 0).endswith(b"\r\ncontent-length: 0\r\n\r\n")


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"\r\n", b"\r\nx: y", b"\n\r"])
@pytest.mark.parametrize("place", ["name", "value", "target", "method"])
def test_injection_is_refused(bad: bytes, place: str) -> None:
    given = {part: b"a" + bad + b"b" if part == place else b"ab" for part in ("name", "value", "target", "method")}
    with pytest.raises(ValueError, match="reject"):
        render(given["method"].decode(), given["target"], b"e", [(given["name"], given["value"])], 0)


@pytest.mark.parametrize("target", [b"/a b", b"/ HTTP/1.0", b""])
def test_a_target_that_would_be_two_words_or_none_is_refused(target: bytes) -> None:
    with pytest.raises(ValueError, match="reject"):
        render("GET", target, b"e", [], 0)


@pytest.mark.parametrize("name", [b"Host", b"content-length", b"Content-Length", b"TRANSFER-ENCODING"])
def test_framing_is_ours(name: bytes) -> None:
    with pytest.raises(ValueError, match="set by the wire"):
        render("POST", b"/", b"e", [(b"a", b"b"), (name, b"1")], 0)


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=4), st.binary(max_size=8))
def test_whatever_is_given_there_are_as_many_lines_as_headers(
    headers: list[tuple[bytes, bytes]], target: bytes
) -> None:
    try:
        head = render("POST", target, b"e", headers, 1)
    except ValueError:
        return
    assert len(head.splitlines()) >= len(headers) + 4
    assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == len(headers) + 4
