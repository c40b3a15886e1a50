"""Where an engine listens, and how to get there."""

import asyncio
import ssl
from urllib.parse import urlsplit


class Endpoint:
    """An engine's root URL: `http://host:port`, `https://host:port` or `unix:///path/to.sock`.

    `https` is verified against the system's certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others). Raises
    `ValueError` for anything else, a path behind the host included.
    """

    __slots__ = ("_address", "_path", "_tls", "host", "url")

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self._path = ""
        self._address = ("", 0)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            self._path = parts.path
            self.host = b"localhost"
            return
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError(f"{url!r}: give http://host:port, https://host:port or unix:///path/to.sock")
        secure = parts.scheme == "https"
        self.host = parts.netloc.rpartition("@")[2].encode("ascii")
        self._address = (parts.hostname, parts.port or (443 if secure else 80))
        if secure:
            self._tls = ssl.create_default_context()

    async def connect(self, protocol: asyncio.Protocol) -> None:
        """Connect `protocol`; it is told by `connection_made` before this returns. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        if self._path:
            await loop.create_unix_connection(lambda: protocol, self._path)
        else:
            host, port = self._address
            await loop.create_connection(lambda: protocol, host, port, ssl=self._tls)
