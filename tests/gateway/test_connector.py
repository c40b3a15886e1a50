"""The NIXL connector: what each leg says, what of an answer is believed, and that it is used once and in time."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connector import nixl_pull
from gateway.connector.lease import Stale, Transfer, Used
from gateway.connector.nixl_pull import Incomplete
from gateway.prompt.apis import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Api
from gateway.prompt.body import parse

PARAMS: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "e",
    "remote_request_id": "r",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
    "remote_num_tokens": 70,
    "something_new": {"kept": [1.0]},
}


def answer(params: dict[str, Any] | None = None, **usage: int) -> bytes:
    return json.dumps({"usage": usage or {"prompt_tokens": 70}, "kv_transfer_params": params or PARAMS}).encode()


def receive(raw: bytes, expected: int | None = None) -> Transfer:
    return nixl_pull.receive(raw, 100.0, lease_s=30.0, margin_s=5.0, expected=expected).transfer


@pytest.mark.parametrize(
    ("api", "body", "limits"),
    [
        (CHAT, {"messages": [], "max_tokens": 9}, {"max_tokens": 1}),
        (
            CHAT,
            {"messages": [], "max_tokens": 9, "max_completion_tokens": 7},
            {"max_tokens": 1, "max_completion_tokens": 1},
        ),
        (CHAT, {"messages": []}, {"max_tokens": 1}),
        (COMPLETIONS, {"prompt": "x"}, {"max_tokens": 1}),
        (MESSAGES, {"messages": [], "max_tokens": 5}, {"max_tokens": 1}),
        (RESPONSES, {"input": "x"}, {"max_output_tokens": 1}),
    ],
)
def test_prefill_leg_asks_for_one_token_and_the_parameters(
    api: Api, body: dict[str, Any], limits: dict[str, int]
) -> None:
    extra = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["a"],
        "min_tokens": 3,
        "n": 1,
        "new": 7,
    }
    leg = json.loads(nixl_pull.prefill_body(api, parse(json.dumps({**body, **extra}).encode())))
    assert leg.pop("kv_transfer_params") == {"do_remote_decode": True, "do_remote_prefill": False}
    assert leg == {api.prompt: body[api.prompt], **limits, "stream": False, "ignore_eos": True, "new": 7}


def test_decode_leg_is_the_request_and_the_parameters_unchanged() -> None:
    body = b'{"model":"m","prompt":"x","seed":1.0,"stream":true}'
    params = receive(answer()).take(101.0)
    leg = nixl_pull.decode_body(CHAT, parse(body), params)
    assert leg == body[:-1] + b',"kv_transfer_params":' + json.dumps(PARAMS).encode() + b"}"


@pytest.mark.parametrize("api", [CHAT, RESPONSES, MESSAGES, COMPLETIONS])
def test_ids_stand_for_the_prompt_on_both_legs(api: Api) -> None:
    fields = parse(json.dumps({"model": "m", api.prompt: "x"}).encode())
    ids = msgspec.Raw(b"[3,4,5]")
    first = json.loads(nixl_pull.prefill_body(api, fields, ids, return_ids=True))
    second = json.loads(nixl_pull.decode_body(api, fields, receive(answer()).take(101.0), ids))
    assert first["return_token_ids"] is True
    carried = {} if api is COMPLETIONS else {"prompt_token_ids": [3, 4, 5]}
    assert first["kv_transfer_params"] == {**carried, "do_remote_decode": True, "do_remote_prefill": False}
    assert second["kv_transfer_params"] == {**carried, **PARAMS}
    assert first[api.prompt] == second[api.prompt] == ([3, 4, 5] if api is COMPLETIONS else "x")


def test_another_length_than_that_of_the_ids_is_refused() -> None:
    assert receive(answer(), expected=70).prompt_tokens == 70
    with pytest.raises(Incomplete, match="70 tokens where 5 ids were sent"):
        receive(answer(), expected=5)


@pytest.mark.parametrize(
    ("more", "ids"),
    [
        ({}, None),
        ({"prompt_token_ids": None, "choices": []}, None),
        ({"prompt_token_ids": [1, 2]}, b"[1, 2]"),
        ({"choices": [{"prompt_token_ids": [1, 2]}]}, b"[1, 2]"),
    ],
)
def test_returned_ids_and_cached_tokens_are_read(more: dict[str, Any], ids: bytes | None) -> None:
    usage = {"prompt_tokens": 70, "prompt_tokens_details": {"cached_tokens": 64}}
    raw = json.dumps({"usage": usage, "kv_transfer_params": PARAMS, **more}).encode()
    prefilled = nixl_pull.receive(raw, 100.0, lease_s=30.0, margin_s=5.0)
    assert prefilled.cached == 64
    assert (None if prefilled.ids is None else bytes(prefilled.ids)) == ids


@pytest.mark.parametrize("missing", [name for name in PARAMS if name.startswith(("do_remote_prefill", "remote_"))])
def test_incomplete_parameters_are_refused(missing: str) -> None:
    params = {name: value for name, value in PARAMS.items() if name != missing}
    if missing == "remote_num_tokens":  # older engines do not send it
        assert receive(answer(params)).prompt_tokens == 70
    else:
        with pytest.raises(Incomplete):
            receive(answer(params))


@pytest.mark.parametrize(
    "change",
    [
        {"remote_block_ids": []},
        {"remote_block_ids": [[]]},
        {"remote_block_ids": None},
        {"remote_engine_id": ""},
        {"remote_host": None},
        {"remote_port": 0},
        {"remote_port": "5600"},
        {"do_remote_prefill": False},
        {"remote_num_tokens": 69},
    ],
)
def test_wrong_parameters_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Incomplete):
        receive(answer({**PARAMS, **change}))


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b'{"usage":{"prompt_tokens":1}}', b'{"usage":null}', answer({}, other=1)]
)
def test_an_answer_without_parameters_or_usage_is_refused(raw: bytes) -> None:
    if raw == answer({}, other=1):
        raw = json.dumps({"usage": {}, "kv_transfer_params": PARAMS}).encode()
    with pytest.raises(Incomplete):
        receive(raw)


def test_anthropic_counts_cached_tokens_beside_the_others() -> None:
    assert receive(answer(input_tokens=6, cache_read_input_tokens=64)).prompt_tokens == 70


def test_parameters_are_good_once() -> None:
    transfer = receive(answer())
    transfer.take(100.0)
    with pytest.raises(Used):
        transfer.take(100.0)


@given(answered=st.floats(0, 1e6), lease=st.floats(0.1, 600), margin=st.floats(0, 60), after=st.floats(0, 1200))
def test_parameters_are_given_out_only_inside_the_lease_less_its_margin(
    answered: float, lease: float, margin: float, after: float
) -> None:
    now = answered + after
    transfer = Transfer(msgspec.Raw(b"{}"), 1, answered, lease, margin)
    if now < transfer.deadline:
        assert transfer.take(now) == msgspec.Raw(b"{}")
        assert now <= answered + lease
    else:
        with pytest.raises(Stale):
            transfer.take(now)
