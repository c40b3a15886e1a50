"""The head of a request, as bytes."""

from collections.abc import Sequence

_OURS = (b"\r\nhost:", b"\r\ncontent-length:", b"\r\ntransfer-encoding:")


def render(method: str, target: bytes, host: bytes, headers: Sequence[tuple[bytes, bytes]], body_bytes: int) -> bytes:
    """Request line, Host, the headers as given, Content-Length, and the empty line (RFC 9112, section 3).

    Content-Length is left out where there is no body and none is expected (GET, HEAD). Raises `ValueError` for what
    would make another request of it: CR, LF or NUL anywhere, a space in the target, or a framing header of the
    caller's (Host, Content-Length, Transfer-Encoding).
    """
    given = b"".join([b"\r\n%b: %b" % header for header in headers])
    line = b"%b %b HTTP/1.1" % (method.encode("ascii"), target)
    lines = len(headers)
    if (
        given.count(b"\n") != lines
        or given.count(b"\r") != lines
        or b"\0" in given
        or line.count(b" ") != 2
        or b"\n" in line
        or b"\r" in line
        or b"\0" in line
    ):
        raise ValueError(
            f"{method} {target!r}: CR, LF, NUL or a stray space in the request line or a header: reject it"
        )
    lower = given.lower()
    for name in _OURS:
        if name in lower:
            raise ValueError(f"header {name[2:-1].decode()} is set by the wire: leave it out")
    if body_bytes or method not in ("GET", "HEAD"):
        return b"%b\r\nhost: %b%b\r\ncontent-length: %d\r\n\r\n" % (line, host, given, body_bytes)
    return b"%b\r\nhost: %b%b\r\n\r\n" % (line, host, given)
