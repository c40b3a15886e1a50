"""vLLM's NixlConnector in pull mode: the decode engine reads the blocks that the prefill engine holds.

Leg 1 is the request itself with one token out, not streamed; its answer carries `kv_transfer_params`. Leg 2 is the
request with that object. Source: vLLM `distributed/kv_transfer/kv_connector/v1/nixl/pull_scheduler.py`
(`request_finished` fills the parameters, `get_num_new_matched_tokens` and `update_state_after_alloc` read them).

vLLM never compares tokens and does not check the parameters: incomplete ones hang the request, a longer prompt on the
decode engine ends its process, a read after the lease gives wrong tokens with status 200. So they are checked here.
"""

from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.connector.lease import Transfer
from gateway.prompt.apis import COMPLETIONS, Api
from gateway.prompt.body import FALSE, ONE, TRUE, Fields, edit

PARAMS = "kv_transfer_params"
_ASK = b'{"do_remote_decode":true,"do_remote_prefill":false}'
_RETURN_IDS = {"return_token_ids": TRUE}
_EMPTY = (b"null", b"[]", b"[[]]")

PREFILL_DROPS = frozenset(
    (
        "stream_options",  # refused without a stream
        "stream_interval",
        "n",
        "best_of",
        "min_tokens",  # refused when above the one token we ask for
        "logprobs",  # the answer's text is thrown away
        "top_logprobs",
        "logprob_token_ids",
        "prompt_logprobs",
        "echo",
        "stop",  # a first token that stops would end the request before the parameters are made
        "stop_token_ids",
        "use_beam_search",
        "thinking_token_budget",
        "repetition_detection",
        "return_prompt_text",
    )
)
"""Fields that say nothing about the prompt and could refuse or spoil a one-token answer."""


class Incomplete(Exception):
    """The prefill engine's answer cannot be used for a transfer; the message says why."""


class _Params(msgspec.Struct):
    do_remote_prefill: bool
    remote_block_ids: Raw
    remote_engine_id: str
    remote_request_id: str
    remote_host: str
    remote_port: int
    remote_num_tokens: int | UnsetType = UNSET


class Prefilled(NamedTuple):
    """What a prefill engine has answered."""

    transfer: Transfer
    cached: int | None
    """Prompt tokens that it did not have to compute; None if it does not say."""
    ids: Raw | None
    """The prompt's token ids, a JSON list, if they were asked for."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """OpenAI's names, and Anthropic's, where cached tokens are not part of `input_tokens`."""

    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens: int = 0
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def prompt(self) -> int:
        cached = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        return self.prompt_tokens or self.input_tokens + cached

    @property
    def cached(self) -> int | None:
        details = self.prompt_tokens_details
        return self.cache_read_input_tokens if details is None else details.cached_tokens


class _Choice(msgspec.Struct):
    prompt_token_ids: Raw = Raw(b"null")


class _Answer(msgspec.Struct):
    usage: _Usage
    kv_transfer_params: Raw | UnsetType = UNSET
    prompt_token_ids: Raw = Raw(b"null")
    choices: tuple[_Choice, ...] = ()

    @property
    def ids(self) -> Raw | None:
        """Chat has them on top, completions in the choice."""
        found = self.prompt_token_ids
        if bytes(found) == b"null" and self.choices:
            found = self.choices[0].prompt_token_ids
        return found if bytes(found) != b"null" else None


_answer = msgspec.json.Decoder(_Answer).decode
_params = msgspec.json.Decoder(_Params).decode


def prefill_body(api: Api, fields: Fields, ids: Raw | None = None, return_ids: bool = False) -> bytes:
    """Leg 1: the same prompt, one token, not streamed. `ids` stand for the prompt; `return_ids` asks for them."""
    put = {name: ONE for name in api.limits if name in fields} or {api.limits[-1]: ONE}
    if return_ids:
        put["return_token_ids"] = TRUE
    return edit(fields, PREFILL_DROPS, {**put, "stream": FALSE, "ignore_eos": TRUE, **_carried(api, _ASK, ids)})


def _carried(api: Api, params: bytes, ids: Raw | None) -> dict[str, Raw]:
    """Transfer parameters and, where there are any, the ids that stand for the prompt.

    On chat, responses and messages vLLM takes them inside the parameters; completions take them as the prompt.
    """
    if ids is None:
        return {PARAMS: Raw(params)}
    if api is COMPLETIONS:
        return {PARAMS: Raw(params), "prompt": ids}
    return {PARAMS: Raw(b'{"prompt_token_ids":%b,%b' % (bytes(ids), params.lstrip()[1:]))}


def receive(
    answer: bytes, answered_s: float, lease_s: float, margin_s: float, expected: int | None = None
) -> Prefilled:
    """Read leg 1's answer. `expected` is the number of ids that stood for the prompt. Raises `Incomplete`."""
    try:
        decoded = _answer(answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Incomplete(f"not an answer with usage: {error}") from None
    if decoded.kv_transfer_params is UNSET or bytes(decoded.kv_transfer_params) == b"null":
        raise Incomplete("no kv_transfer_params: is the engine started with a kv_transfer_config that produces?")
    try:
        params = _params(decoded.kv_transfer_params)
    except msgspec.DecodeError as error:
        raise Incomplete(f"kv_transfer_params: {error}") from None
    if not params.do_remote_prefill:
        raise Incomplete("kv_transfer_params do not ask for a remote prefill")
    if bytes(params.remote_block_ids).replace(b" ", b"") in _EMPTY:
        raise Incomplete("kv_transfer_params name no blocks")
    if not (params.remote_engine_id and params.remote_request_id and params.remote_host and params.remote_port):
        raise Incomplete("kv_transfer_params do not say where the blocks are")
    prompt_tokens = decoded.usage.prompt
    if not prompt_tokens:
        raise Incomplete("usage does not count the prompt")
    if params.remote_num_tokens not in (UNSET, prompt_tokens):
        raise Incomplete(f"{params.remote_num_tokens} tokens to fetch for a prompt of {prompt_tokens}")
    if expected not in (None, prompt_tokens):
        raise Incomplete(f"prefilled {prompt_tokens} tokens where {expected} ids were sent")
    transfer = Transfer(decoded.kv_transfer_params, prompt_tokens, answered_s, lease_s, margin_s)
    return Prefilled(transfer, decoded.usage.cached, decoded.ids)


def decode_body(api: Api, fields: Fields, params: Raw, ids: Raw | None = None, return_ids: bool = False) -> bytes:
    """Leg 2: the request itself, where its KV is, and the ids that stood for the prompt on leg 1.

    `return_ids` asks for those of the prompt and of all that is generated.
    """
    return edit(fields, (), {**_carried(api, bytes(params), ids), **(_RETURN_IDS if return_ids else {})})


def whole_body(api: Api, fields: Fields, ids: Raw | None = None, return_ids: bool = False) -> bytes:
    """The request for one engine alone. `ids` stand for the prompt."""
    put = _RETURN_IDS if return_ids else {}
    if ids is not None:
        named = {"prompt": ids} if api is COMPLETIONS else {PARAMS: Raw(b'{"prompt_token_ids":%b}' % bytes(ids))}
        put = {**put, **named}
    return edit(fields, (), put)
