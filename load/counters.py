"""What engines counted: read before and after a request, the difference says what it caused."""

from dataclasses import dataclass
from typing import Self

import httpx

from engines.surface import KV_BYTES_PULLED, PROMPT_TOKENS_BY_SOURCE, total


@dataclass(frozen=True, slots=True)
class Pulled:
    """KV that decode engines fetched from prefill engines."""

    tokens: float = 0.0
    bytes: float = 0.0

    def __sub__(self, before: "Pulled") -> "Pulled":
        return Pulled(self.tokens - before.tokens, self.bytes - before.bytes)

    @classmethod
    async def read(cls, http: httpx.AsyncClient, url: str) -> Self | None:
        """Of one engine; None if its metrics cannot be read from here."""
        try:
            answer = await http.get(f"{url}/metrics")
            answer.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL):
            return None
        external = {"source": "external_kv_transfer"}
        return cls(
            total(answer.text, PROMPT_TOKENS_BY_SOURCE, external) or 0.0, total(answer.text, KV_BYTES_PULLED) or 0.0
        )
