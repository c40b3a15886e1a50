"""The head of a request, as bytes."""

import re
from collections.abc import Sequence

_FRAMING = re.compile(rb"\r\n(?:host|content-length|transfer-encoding):", re.IGNORECASE)


def render(method: str, target: bytes, host: bytes, headers: Sequence[tuple[bytes, bytes]], body_bytes: int) -> bytes:
    """Request line, Host, the headers as given, Content-Length, and the empty line (RFC 9112, section 3).

    Content-Length is left out where there is no body and none is expected (GET, HEAD). Raises `ValueError` for what
    would make another request of it: CR, LF or NUL anywhere, a space in the target, or a framing header of the
    caller's (Host, Content-Length, Transfer-Encoding).
    """
    line = b"%b %b HTTP/1.1\r\nhost: %b" % (method.encode("ascii"), target, host)
    head = line + b"".join([b"\r\n%b: %b" % header for header in headers])
    lines = len(headers) + 1
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise ValueError(f"{method} {target!r}: CR, LF or NUL in the request line or a header: reject it")
    if not target or b" " in target or not method.isalpha():
        raise ValueError(f"{method} {target!r}: not a method and a target: reject it")
    if _FRAMING.search(head, len(line)):
        raise ValueError("host, content-length and transfer-encoding are set by the wire: leave them out")
    if body_bytes or method not in ("GET", "HEAD"):
        return b"%b\r\ncontent-length: %d\r\n\r\n" % (head, body_bytes)
    return head + b"\r\n\r\n"
