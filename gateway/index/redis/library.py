"""The Redis Function library: its source, its name, and getting it into a server.

The name carries a fingerprint of the source, so gateways of different versions share a server: each calls its own.
"""

from pathlib import Path
from typing import Any

from xxhash import xxh32_hexdigest

_TEMPLATE = Path(__file__).with_name("library.lua").read_text()
NAME = f"baton_{xxh32_hexdigest(_TEMPLATE.encode())}"
SOURCE = _TEMPLATE.replace("@LIBRARY@", NAME)
MISSING = "Function not found"
"""What a server answers that does not have (or has lost) the library."""


def function(name: str) -> bytes:
    """The full name of one of its functions."""
    return f"{NAME}_{name}".encode()


async def load(client: Any) -> None:
    """Put the library into the server of a redis-py client; an equal one that is there is replaced by itself."""
    await client.function_load(SOURCE, replace=True)
