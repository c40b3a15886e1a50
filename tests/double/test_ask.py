"""Whatever a body says, it is understood or refused: nothing else comes out."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.double.ask import Api, Ask, read
from engines.double.body import parse
from engines.double.errors import RefusedError
from engines.double.limits import Limits

LIMITS = Limits()
NAMES = ("name", "role", "content", "type", "function", "parameters", "properties", "enum", "schema", "json", "text")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "messages", "prompt", "input", "model", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens",
    "n", "temperature", "top_p", "stream", "stream_options", "stop", "stop_sequences", "stop_token_ids", "tools",
    "tool_choice", "response_format", "structured_outputs", "kv_transfer_params", "cache_salt", "logprobs",
    "top_logprobs", "echo", "ignore_eos", "return_token_ids", "add_generation_prompt", "continue_final_message",
    "system", "instructions", "previous_response_id", "include_stop_str_in_output",
)  # fmt: skip
APIS: list[Api] = ["chat", "completions", "messages", "responses"]


@settings(deadline=None)
@given(st.sampled_from(APIS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_a_body_is_understood_or_refused(api: Api, change: dict[str, Any]) -> None:
    said = [{"role": "user", "content": "hi"}]
    body = {"model": "m", "messages": said, "prompt": "hi", "input": "hi", "max_tokens": 5, **change}
    try:
        ask = read(api, body, "m", LIMITS)
    except RefusedError as error:
        assert 400 <= error.status < 500
        assert error.body() and error.anthropic_body()
    else:
        assert isinstance(ask, Ask)
        assert ask.n >= 1 and ask.sampling.max_tokens >= 1 and all(ask.prompts)


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_bytes_are_an_object_or_refused(raw: bytes) -> None:
    try:
        assert isinstance(parse(raw, "application/json"), dict)
    except RefusedError as error:
        assert error.status == 400 and error.body()


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"a": 1}, "bool_type", "Input should be a valid boolean"),
        ("maybe", "bool_parsing", "Input should be a valid boolean, unable to interpret input"),
    ],
)
def test_what_is_no_boolean(value: Any, kind: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as refused:
        read("chat", {"messages": [], "stream": value}, "m", LIMITS)
    assert kind in refused.value.message and refused.value.param == "body.stream"


@pytest.mark.parametrize("value", [True, 1, "true", "yes"])
def test_what_is_a_boolean(value: Any) -> None:
    assert read("completions", {"prompt": "a", "stream": value}, "m", LIMITS).stream
