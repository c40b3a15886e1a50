"""A gateway that is given the double's folder reads prompts as the double does."""

from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from engines.double import Double, tokens
from engines.double.folder import write_folder
from gateway.cli import build
from gateway.prompt import probe
from gateway.prompt.apis import COMPLETIONS
from gateway.prompt.reader import Reader
from gateway.prompt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def double_reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader.load(write_folder(tmp_path_factory.mktemp("folder")))


def test_it_is_read_by_the_fast_library(tmp_path: Path) -> None:
    assert Tokenizer(write_folder(tmp_path) / "tokenizer.json").kind == "fastokens"


def test_a_folder_of_another_model_is_left_as_it_is(tmp_path: Path) -> None:
    assert write_folder(write_folder(tmp_path)) == tmp_path
    ours = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    result = CliRunner().invoke(build("double"), ["double", "--prefill", "1", "--tokenizer", str(tmp_path)])
    assert result.exit_code == 2
    assert "another model" in result.output
    assert (tmp_path / "tokenizer_config.json").read_text() == "{}"
    assert (tmp_path / "tokenizer.json").read_bytes() == ours
    assert len(list(tmp_path.iterdir())) == 2


async def test_the_gateway_finds_no_disagreement(double_reader: Reader) -> None:
    async with Double() as double, httpx.AsyncClient(base_url=double.url, trust_env=False) as http:
        assert await probe.disagreement(http, double.model, double_reader) == ""


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, alphabet=st.characters(codec="utf-8")))
def test_any_text_gives_the_same_ids(double_reader: Reader, text: str) -> None:
    read = double_reader.read(COMPLETIONS, {"prompt": msgspec.Raw(msgspec.json.encode(text))})
    assert list(memoryview(read.ids or b"").cast("I")) == tokens.encode(text)
