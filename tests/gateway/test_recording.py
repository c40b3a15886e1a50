"""What a gateway records can be replayed: lengths, turns and shared beginnings, and no text."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engines.double import Double
from load.replay.trace import BadTrace, read
from tests.gateway.conftest import Gateway
from tests.gateway.readers import DoubleReader

WORDS = "river stone engine letter window garden number winter summer bread copper signal paper north lantern "


async def ask(gateway: Gateway, prompt: str, *, stream: bool = False, session: str = "", answer: int = 40) -> None:
    body: dict[str, Any] = {"model": "m", "prompt": prompt, "max_tokens": answer, "ignore_eos": True, "stream": stream}
    headers = {"x-session-id": session} if session else {}
    found = await gateway.http.post("/v1/completions", json=body, headers=headers)
    assert found.status_code == 200, found.text


async def test_a_recording_is_replayed_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    start = WORDS * 60
    async with Double("prefill", "p0") as p, Double("decode", "d0") as d:
        async with Gateway.over(p, d, reader=DoubleReader(), record_file=str(path)) as gateway:
            await ask(gateway, start + "one", session="secret-session")
            await ask(gateway, start + "one and two", session="secret-session", stream=True)
            await ask(gateway, start + "other", answer=7)
            refused = await gateway.http.post("/v1/completions", json={"model": "other", "prompt": "x"})
            assert refused.status_code == 404
    text = path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert "river" not in text and "secret" not in text
    size = json.loads(text.splitlines()[0])["block_tokens"]
    asks = read(path, size)
    assert [ask.answer for ask in asks] == [40, 40, 7]
    assert [ask.after for ask in asks] == [-1, 0, -1]
    assert asks[0].session == asks[1].session != asks[2].session
    assert asks[1].think_s >= 0 and asks[0].at_s == 0 < asks[1].at_s < asks[2].at_s
    full = len(asks[2].names) - 1
    assert full > 3 and asks[0].names[:full] == asks[2].names[:full]
    with pytest.raises(BadTrace, match=f"--block-tokens {size}"):
        read(path, 512)


async def test_a_full_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    async with Double("both", "c0") as c, Gateway.over(c, record_file=str(path), record_max_bytes=1) as gateway:
        for _ in range(3):
            await ask(gateway, "hello there")
    assert len(path.read_text().splitlines()) == 1


async def test_a_file_that_cannot_be_written_fails_no_request(tmp_path: Path) -> None:
    async with Double("both", "c0") as c, Gateway.over(c, record_file=str(tmp_path / "no" / "x")) as gateway:
        await asyncio.gather(*(ask(gateway, "hello there") for _ in range(3)))
