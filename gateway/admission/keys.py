"""API keys: who may use the routes under `/v1` and the other routes that engines answer."""

from collections.abc import Mapping
from hashlib import blake2s
from pathlib import Path
from typing import Self

from gateway.errors import ApiError
from gateway.settings import SettingsError

_BEARER = b"bearer "

POLICY = "policy"
"""What a key may do beside asking: choose a built-in policy for its request."""


class Keys:
    """The keys that are good, and what each may; none at all: everybody may ask.

    Only digests are kept: comparing tells nothing.
    """

    def __init__(self, keys: Mapping[str, bool] | None = None) -> None:
        """Keys, and whether they may choose a policy."""
        self._good = {blake2s(key.encode()).digest(): chooses for key, chooses in (keys or {}).items()}

    @classmethod
    def load(cls, path: str) -> Self:
        """One key per line, and `policy` after it if it may choose one; empty lines and lines that begin with `#` do
        not count. Raises `SettingsError`.
        """
        if not path:
            return cls()
        try:
            lines = [line.strip() for line in Path(path).read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"api_keys_file: {path}: {error}") from None
        keys = {}
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                key, *rights = line.split()
                if rights not in ([], [POLICY]):
                    raise SettingsError(
                        f"api_keys_file: {path}:{number}: write one key per line, with nothing after it but `{POLICY}`"
                    )
                keys[key] = bool(rights)
        if not keys:
            raise SettingsError(f"api_keys_file: {path} has no key: write one per line")
        return cls(keys)

    def __len__(self) -> int:
        return len(self._good)

    def become(self, other: "Keys") -> None:
        """From now on those are good."""
        self._good = other._good

    def check(self, headers: Mapping[bytes, bytes]) -> bool:
        """`Authorization: Bearer KEY` (OpenAI's clients) or `X-Api-Key: KEY` (Anthropic's). Raises `ApiError` (401).

        Returns whether the key may choose a policy.
        """
        if not self._good:
            return False
        key = headers.get(b"x-api-key", b"")
        given = headers.get(b"authorization", b"")
        if given[:7].lower() == _BEARER:
            key = given[7:].strip()
        chooses = self._good.get(blake2s(key).digest())
        if chooses is None:
            what = "Incorrect API key." if key else "No API key: send `Authorization: Bearer KEY`."
            raise ApiError(401, what, kind="authentication_error", code="invalid_api_key")
        return chooses
