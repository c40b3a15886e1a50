"""What the tests of the double share: an HTTP client and the two legs of a request."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from engines.double import Double

PREFILL: dict[str, Any] = {"do_remote_decode": True, "do_remote_prefill": False}
TEXT = "the quick brown fox jumps over the lazy dog and keeps running, " * 4


def chat(text: str = TEXT, max_tokens: int = 16, **more: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, **more}


class Client:
    """Sends a body to a double and gives what came back."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(
        self, double: Double, body: Any, path: str = "/v1/chat/completions", **headers: str
    ) -> httpx.Response:
        return await self.http.post(double.url + path, json=body, headers=headers)

    async def say(self, double: Double, body: dict[str, Any]) -> str:
        """The text of a chat answer that must succeed."""
        response = await self.post(double, body)
        assert response.status_code == 200, response.text
        content: str = response.json()["choices"][0]["message"]["content"]
        return content

    async def prefill(self, double: Double, body: dict[str, Any]) -> dict[str, Any]:
        """Leg 1: the transfer parameters."""
        response = await self.post(double, {**body, "max_tokens": 1, "kv_transfer_params": PREFILL})
        assert response.status_code == 200, response.text
        params: dict[str, Any] = response.json()["kv_transfer_params"]
        return params

    async def events(self, double: Double, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[str]:
        """The SSE events of a stream, whole, as text."""
        async with self.http.stream("POST", double.url + path, json={**body, "stream": True}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            text = (await response.aread()).decode()
        assert text.endswith("\n\n")
        return text.removesuffix("\n\n").split("\n\n")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with httpx.AsyncClient(timeout=20, verify=False) as http:
        yield Client(http)


@pytest.fixture
async def both() -> AsyncIterator[Double]:
    async with Double(name="b") as double:
        yield double


@pytest.fixture
async def p() -> AsyncIterator[Double]:
    async with Double("prefill", "p") as double:
        yield double


@pytest.fixture
async def d() -> AsyncIterator[Double]:
    async with Double("decode", "d") as double:
        yield double
