"""Reading prompts without an engine: the text that is rendered, what is left unread, which library tokenises."""

import json
import random
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.tiny_model import make_tiny_model
from gateway.prompt.apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Api
from gateway.prompt.messages import Unread
from gateway.prompt.reader import Prompt, Reader, UnreadableModel
from gateway.prompt.reading import of_ids, of_text
from gateway.prompt.render import value
from gateway.prompt.tokenizers import Folders
from tests.prompt.shapes import CHATS
from tests.prompt.templates import PLAIN, TEMPLATES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("reader") / "tiny-llama")


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader.load(folder, chat_template=PLAIN)


def fields(body: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()}


def read(reader: Reader, api: Api, **body: Any) -> Prompt:
    return reader.read(api, fields(body))


def encoded(folder: Path, text: str, special: bool = False) -> bytes:
    slow = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return array("I", slow.encode(text, add_special_tokens=special).ids).tobytes()


def test_a_chat_is_rendered_and_tokenised(reader: Reader, folder: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi  there"}]
    prompt = read(reader, CHAT, messages=messages)
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi  there<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids == encoded(folder, text)
    assert prompt.tokens == len(encoded(folder, text)) // 4


def test_a_completion_gets_its_special_tokens(reader: Reader, folder: Path) -> None:
    assert read(reader, COMPLETIONS, prompt="Hi").ids == encoded(folder, "Hi", special=True)
    assert read(reader, COMPLETIONS, prompt=["Hi"]).ids == encoded(folder, "Hi", special=True)
    assert read(reader, COMPLETIONS, prompt="Hi", add_special_tokens=False).ids == encoded(folder, "Hi")
    assert read(reader, COMPLETIONS, prompt=[[7, 8]]).ids == array("I", [7, 8]).tobytes()


@pytest.mark.parametrize(
    ("api", "body", "why"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "part"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}]}, "part"),
        (CHAT, {"messages": [{"role": "user"}]}, "without content"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        (CHAT, {"messages": []}, "not a list"),
        (CHAT, {"messages": "x"}, "not a list"),
        (CHAT, {"messages": [7]}, "not an object"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "chat_template": "x"}, "chat_template"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "truncate_prompt_tokens": 5}, "truncate"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "custom"}]}, "function"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"padding": 1}}, "tokenizer"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "continue_final_message": True}, "continues"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "one prompt"),
        (COMPLETIONS, {"prompt": ""}, "one prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "range"),
        (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "suffix"),
        (RESPONSES, {"input": "x"}, "engine only"),
        (MESSAGES, {"messages": []}, "engine only"),
    ],
)
def test_what_is_not_mirrored_has_no_ids_and_says_why(reader: Reader, api: Api, body: dict[str, Any], why: str) -> None:
    prompt = read(reader, api, **body)
    assert prompt.ids is None
    assert why in prompt.why


def test_a_template_that_refuses_or_never_ends_well_is_only_unread(folder: Path) -> None:
    said = [{"role": "user", "content": "x"}]
    for template in ("{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages[9].x.y }}", "", "{{ ''.__class__ }}"):
        prompt = read(Reader.load(folder, chat_template=template or "{% if 0 %}{% endif %}"), CHAT, messages=said)
        assert prompt.ids is None


def test_numbers_keep_their_digits() -> None:
    raw = {"tools": msgspec.Raw(b"[123456789012345678901234567890, 1.0, 1e400]")}
    assert value(raw, "tools")[0] == 123456789012345678901234567890
    with pytest.raises(Unread):
        value({"tools": msgspec.Raw(b"[" * 100_000)}, "tools")


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_shape_is_read_or_says_why(folder: Path, name: str) -> None:
    reader = Reader.load(folder, chat_template=TEMPLATES[name])
    for shape, body in CHATS.items():
        prompt = reader.read(CHAT, fields(body))
        assert (prompt.ids is None) == bool(prompt.why), shape


ANY = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(("role", "content", "type", "text")), inner),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=ANY)
def test_nothing_that_a_client_sends_makes_it_fail(reader: Reader, messages: Any) -> None:
    for raw in (messages, [messages], [{"role": "user", "content": messages}]):
        try:
            encoded = msgspec.Raw(msgspec.json.encode(raw))
        except (UnicodeEncodeError, msgspec.ValidationError):
            return
        for api in (CHAT, COMPLETIONS):
            prompt = reader.read(api, {api.prompt: encoded})
            assert (prompt.ids is None) == bool(prompt.why)


def test_a_growing_conversation_reads_the_same_with_and_without_what_was_seen(folder: Path) -> None:
    pick = random.Random(3)
    warm = Reader.load(folder)
    said: list[dict[str, str]] = []
    for turn in range(12):
        text = " ".join(pick.choice(("alpha", "béta", "12", "漢", "\n", "<|im_end|>")) for _ in range(200))
        said.append({"role": ("user", "assistant")[turn % 2], "content": text})
        assert read(warm, CHAT, messages=said).ids == read(Reader.load(folder), CHAT, messages=said).ids


def test_models_that_are_rendered_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableModel, match=r"no tokenizer\.json"):
        Reader.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    with pytest.raises(UnreadableModel, match="gpt_oss"):
        Reader.load(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(UnreadableModel, match="mistral"):
        Reader.load(tmp_path)
    (tmp_path / "tekken.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UnreadableModel, match=r"tokenizer\.json"):
        Reader.load(tmp_path)


async def test_a_name_that_is_no_place_leaves_the_tokenizer_of_the_settings(folder: Path) -> None:
    """A model that is only named in the fleet file has its name for a path."""
    found, why = await Folders({"m": "no/such-place"}, str(folder)).reader("m")
    assert (found is not None, why) == (True, "")
    assert await Folders({"m": str(folder / "nothing")}).reader("m") == (
        None,
        f"{folder / 'nothing'} is neither a folder nor in this machine's model cache: "
        "give its folder with --tokenizer, or as `tokenizer` of the model in the fleet file",
    )


def test_a_tokenizer_that_fastokens_refuses_is_read_by_tokenizers(folder: Path, tmp_path: Path) -> None:
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    reader = Reader.load(tmp_path)
    assert reader.kind.startswith("tokenizers")
    assert read(reader, COMPLETIONS, prompt="Hi there").ids == encoded(tmp_path, "Hi there", special=True)


def test_hashes_of_a_longer_prompt_begin_with_those_of_a_shorter_one() -> None:
    ids = array("I", range(1000)).tobytes()
    short, long = of_ids(ids[: 4 * 500], "m", 16), of_ids(ids, "m", 16)
    assert len(long.hashes) == 8 * (1000 // 16)
    assert long.hashes.startswith(short.hashes)
    assert not of_ids(ids, "m", 16, lora="l").hashes.startswith(short.hashes[:8])
    assert long.held(1000 // 16) == 992
    assert of_ids(ids[: 4 * 992], "m", 16).held(62) == 976, "an engine always computes the last token"


def test_text_that_begins_alike_has_hashes_that_begin_alike() -> None:
    one = of_text(CHAT, fields({"messages": "x" * 500}), "m")
    two = of_text(CHAT, fields({"messages": "x" * 400 + "y" * 100}), "m")
    assert one.hashes[:48] == two.hashes[:48]
    assert one.hashes[48:] != two.hashes[48:]
    assert one.ids is None
