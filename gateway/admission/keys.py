"""API keys: who may use the routes under `/v1` and the other routes that engines answer."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Self

from gateway.errors import ApiError
from gateway.settings import SettingsError

_BEARER = b"bearer "


class Keys:
    """The keys that are good; none at all: everybody may ask. Only digests are kept: comparing tells nothing."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._good = frozenset(sha256(key.encode()).digest() for key in keys)

    @classmethod
    def load(cls, path: str) -> Self:
        """One key per line; empty lines and lines that begin with `#` do not count. Raises `SettingsError`."""
        if not path:
            return cls()
        try:
            lines = [line.strip() for line in Path(path).read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"api_keys_file: {path}: {error}") from None
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise SettingsError(f"api_keys_file: {path} has no key: write one per line")
        return cls(keys)

    def __len__(self) -> int:
        return len(self._good)

    def become(self, other: "Keys") -> None:
        """From now on those are good."""
        self._good = other._good

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """`Authorization: Bearer KEY` (OpenAI's clients) or `X-Api-Key: KEY` (Anthropic's). Raises `ApiError` (401)."""
        if not self._good:
            return
        key = headers.get(b"x-api-key", b"")
        given = headers.get(b"authorization", b"")
        if given[:7].lower() == _BEARER:
            key = given[7:].strip()
        if sha256(key).digest() not in self._good:
            what = "Incorrect API key." if key else "No API key: send `Authorization: Bearer KEY`."
            raise ApiError(401, what, kind="authentication_error", code="invalid_api_key")
