"""vLLM's NixlConnector in pull mode: the decode engine reads the blocks that the prefill engine holds.

Leg 1 is the request itself with one token out, not streamed; its answer carries `kv_transfer_params`. Leg 2 is the
request with that object. Source: vLLM `distributed/kv_transfer/kv_connector/v1/nixl/pull_scheduler.py`
(`request_finished` fills the parameters, `get_num_new_matched_tokens` and `update_state_after_alloc` read them).

vLLM never compares tokens and does not check the parameters: incomplete ones hang the request, a longer prompt on the
decode engine ends its process, a read after the lease gives wrong tokens with status 200. So they are checked here.
"""

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.connector.lease import Transfer
from gateway.prompt.apis import Api
from gateway.prompt.body import FALSE, ONE, TRUE, Fields, edit

PARAMS = "kv_transfer_params"
_ASK = Raw(b'{"do_remote_decode":true,"do_remote_prefill":false}')
_EMPTY = (b"null", b"[]", b"[[]]")

PREFILL_DROPS = (
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


class _Usage(msgspec.Struct):
    """OpenAI's names, and Anthropic's, where cached tokens are not part of `input_tokens`."""

    prompt_tokens: int = 0
    input_tokens: int = 0
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def prompt(self) -> int:
        cached = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        return self.prompt_tokens or self.input_tokens + cached


class _Answer(msgspec.Struct):
    usage: _Usage
    kv_transfer_params: Raw | UnsetType = UNSET


_answer = msgspec.json.Decoder(_Answer).decode
_params = msgspec.json.Decoder(_Params).decode


def prefill_body(api: Api, fields: Fields) -> bytes:
    """Leg 1: the same prompt, one token, not streamed."""
    put = {name: ONE for name in api.limits if name in fields} or {api.limits[-1]: ONE}
    return edit(fields, PREFILL_DROPS, {**put, "stream": FALSE, "ignore_eos": TRUE, PARAMS: _ASK})


def receive(answer: bytes, answered_s: float, lease_s: float, margin_s: float) -> Transfer:
    """Read leg 1's answer. Raises `Incomplete`."""
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
    return Transfer(decoded.kv_transfer_params, prompt_tokens, answered_s, lease_s, margin_s)


def decode_body(fields: Fields, params: Raw) -> bytes:
    """Leg 2: the request itself, and where its KV is."""
    return edit(fields, (), {PARAMS: params})


def whole_body(fields: Fields) -> bytes:
    """The request for one engine alone."""
    return edit(fields, (), {})
