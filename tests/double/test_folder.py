"""A gateway that is given the double's folder reads prompts as the double does."""

from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.double import Double, tokens
from engines.double.folder import write_folder
from gateway.prompt import probe
from gateway.prompt.apis import COMPLETIONS
from gateway.prompt.reader import Reader
from gateway.prompt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def double_reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader.load(write_folder(tmp_path_factory.mktemp("folder")))


def test_it_is_read_by_the_fast_library(tmp_path: Path) -> None:
    assert Tokenizer(write_folder(tmp_path) / "tokenizer.json").kind == "fastokens"


async def test_the_gateway_finds_no_disagreement(double_reader: Reader) -> None:
    async with Double() as double, httpx.AsyncClient(base_url=double.url, trust_env=False) as http:
        assert await probe.disagreement(http, double.model, double_reader) == ""


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, alphabet=st.characters(codec="utf-8")))
def test_any_text_gives_the_same_ids(double_reader: Reader, text: str) -> None:
    read = double_reader.read(COMPLETIONS, {"prompt": msgspec.Raw(msgspec.json.encode(text))})
    assert list(memoryview(read.ids or b"").cast("I")) == tokens.encode(text)
