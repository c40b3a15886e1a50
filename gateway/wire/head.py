"""The head of a request, as bytes."""

from collections.abc import Sequence


def render(method: str, target: bytes, host: bytes, headers: Sequence[tuple[bytes, bytes]], body_bytes: int) -> bytes:
    """Request line, Host, the headers as given, Content-Length, and the empty line (RFC 9112, section 3).

    Content-Length is left out where there is no body and none is expected (GET, HEAD). Raises `ValueError` for what
    would make another request of it: CR, LF or NUL anywhere, a space in the target, or a framing header of the
    caller's (Host, Content-Length, Transfer-Encoding).
    """
    parts = [method.encode("ascii"), b" ", target, b" HTTP/1.1\r\nhost: ", host]
    for name, value in headers:
        parts += (b"\r\n", name, b": ", value)
    head = b"".join(parts)
    lines = len(headers) + 1
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise ValueError(f"{method} {target!r}: CR, LF or NUL in the request line or a header: reject it")
    if not target or b" " in target or not method.isalpha():
        raise ValueError(f"{method} {target!r}: not a method and a target: reject it")
    lower = head.lower()
    if b"\r\ncontent-length:" in lower or b"\r\ntransfer-encoding:" in lower or lower.count(b"\r\nhost:") != 1:
        raise ValueError("host, content-length and transfer-encoding are set by the wire: leave them out")
    if body_bytes or method not in ("GET", "HEAD"):
        return b"%b\r\ncontent-length: %d\r\n\r\n" % (head, body_bytes)
    return head + b"\r\n\r\n"
