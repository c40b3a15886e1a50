"""The tiny model is the same everywhere, and made whole or not at all. Needs what comes with vLLM."""

import hashlib
import json
from pathlib import Path

import pytest

from engines import tiny_model
from engines.tiny_model import MAX_POSITIONS, VOCAB, make_tiny_model

pytest.importorskip("numpy")
pytest.importorskip("tokenizers")

DIGEST = "c61b6954e4d4eb74"
"""Of recipe 1. If it changes on purpose, RECIPE must change too."""


def digest(folder: Path) -> str:
    """One hash over what decides the answers: weights, vocabulary, merges, template."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    parts = (
        (folder / "model.safetensors").read_bytes(),
        json.dumps([tokenizer["vocab"], tokenizer["merges"]]).encode(),
        (folder / "tokenizer_config.json").read_bytes(),
        (folder / "config.json").read_bytes(),
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_same_bytes_each_time(tmp_path: Path) -> None:
    one, two = make_tiny_model(tmp_path / "one"), make_tiny_model(tmp_path / "two")
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name
    assert digest(one) == DIGEST
    assert sum(file.stat().st_size for file in one.iterdir()) < 8 << 20


def test_made_once(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_tiny_model(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_made_anew_for_a_new_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_model(tmp_path / "m")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(tiny_model, "RECIPE", tiny_model.RECIPE + 1)
    make_tiny_model(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns != before


def test_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(tiny_model, "_write_weights", full)
        make_tiny_model(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    make_tiny_model(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "what the broken run left is gone"


def test_is_what_engines_expect(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = make_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == VOCAB
    assert config["max_position_embeddings"] == MAX_POSITIONS >= 4096
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast", "else transformers 5 rebuilds the tokenizer"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB
    text = "The quick brown fox; 東京, naïve, 🙂\n\tdef f(x): return {'a': 1}"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|im_start|>user").ids[0] == 0
