"""A request's body, read and checked in the order and with the words of vLLM's protocol classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engines.double import tokens
from engines.double.body import boolean, check, check_shapes, integer, number, stop_strings
from engines.double.errors import RefusedError, bad_body, bad_value, no_model
from engines.double.limits import Limits
from engines.double.sequence import Sampling
from engines.double.structured import forced_answer, tool_to_call

_MOST_CHOICES = 16384
"""vLLM's default VLLM_MAX_N_SEQUENCES."""

Api = Literal["chat", "completions", "messages", "responses"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request wants. `prompts` has one entry, except on `/v1/completions` with a list."""

    api: Api
    body: dict[str, Any]
    prompts: list[list[int]]
    prompt_texts: list[str]
    sampling: Sampling
    n: int = 1
    stream: bool = False
    usage: bool = False
    continuous_usage: bool = False
    return_ids: bool = False
    echo: bool = False
    logprobs: int | None = None
    """top alternatives per token; None without log probabilities"""
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    tool: str | None = None
    """name of the tool that the answer calls"""
    named_tool: bool = False
    salt: str | None = None
    params: dict[str, Any] | None = None


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "messages" not in body:
        raise bad_body("missing", "body.messages", "Field required", body)
    messages = body["messages"]
    if not isinstance(messages, list):
        raise bad_body("list_type", "body.messages", "Input should be a valid list", messages)
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise bad_body("dict_type", f"body.messages.{at}", "Input should be a valid dictionary", message)
        if "role" not in message:
            raise bad_body("missing", f"body.messages.{at}.role", "Field required", message)
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise bad_body("string_type", f"body.messages.{at}.content", "Input should be a valid string", content)
    return messages


def _given_ids(params: Mapping[str, Any] | None) -> list[int] | None:
    """`kv_transfer_params.prompt_token_ids`, which stands in for the messages."""
    ids = params.get("prompt_token_ids") if params else None
    if ids is None:
        return None
    if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
        message = "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of non-negative integers."
        raise bad_value(message, "kv_transfer_params.prompt_token_ids")
    return ids


def _completion_prompts(body: Mapping[str, Any]) -> list[list[int] | str]:
    prompt = body.get("prompt")
    if prompt is None or prompt == "":
        raise bad_value("Either prompt or prompt_embeds must be provided and non-empty.", "prompt", admitted=False)
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise bad_body("list_type", "body.prompt", "Input should be a valid list", prompt)
    if not prompt:
        raise RefusedError("You must pass at least one prompt")
    if all(type(token) is int for token in prompt):
        return [prompt]
    for part in prompt:
        if not isinstance(part, str) and not (isinstance(part, list) and all(type(token) is int for token in part)):
            raise bad_body("string_type", "body.prompt", "Input should be a valid string", part)
    return list(prompt)


def _input_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of `/v1/responses`."""
    if "input" not in body:
        raise bad_body("missing", "body.input", "Field required", body)
    given = body["input"]
    messages: list[dict[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    check(given, list, "body.input")
    for at, part in enumerate(given):
        check(part, dict, f"body.input.{at}")
    return messages + [part if "content" in part else {"role": "user", "content": repr(part)} for part in given]


def _system_first(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of `/v1/messages`, its `system` in front."""
    messages = _messages(body)
    system = body.get("system")
    return [{"role": "system", "content": system}, *messages] if system else messages


def _check_length(count: int, wanted: int | None, field: str, limits: Limits) -> int:
    """The number of tokens that may be generated. Raises `RefusedError`."""
    room = limits.max_model_len
    if wanted is not None and wanted > room:
        message = f"{field}={wanted} cannot be greater than max_model_len={room}. Please request fewer output tokens."
        raise bad_value(message, field, wanted)
    if count > room:
        message = (
            f"This model's maximum context length is {room} tokens. However, your prompt contains {count} input "
            "tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt."
        )
        raise bad_value(message, "input_tokens", count)
    granted = room - count if wanted is None else min(wanted, room - count)
    if granted < 1:
        raise bad_value(f"max_tokens must be at least 1, got {granted}.", "max_tokens", granted)
    return granted


def _check_sampling(body: Mapping[str, Any], n: int, temperature: float, max_tokens: int, min_tokens: int) -> None:
    if n < 1:
        raise RefusedError(f"n must be at least 1, got {n}.")
    if n > _MOST_CHOICES:
        raise RefusedError(
            f"n must be at most {_MOST_CHOICES}, got {n}. "
            "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        )
    if temperature < 0:
        raise bad_value(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature > 2:
        raise bad_value(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    top_p = number(body, "top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise bad_value(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if min_tokens < 0:
        raise RefusedError(f"min_tokens must be greater than or equal to 0, got {min_tokens}.")
    if min_tokens > max_tokens:
        raise RefusedError(f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.")
    if n > 1 and temperature < 1e-5:
        raise RefusedError(f"n must be 1 when using greedy sampling, got {n}.")


def read(api: Api, body: dict[str, Any], model: str, limits: Limits) -> Ask:
    """Check a body and turn it into an `Ask`. Raises `RefusedError`."""
    check_shapes(body)
    params = body.get("kv_transfer_params")
    stream = boolean(body, "stream")
    options = body.get("stream_options") or {}
    limit_field, wanted = _wanted_tokens(api, body)
    min_tokens, n = integer(body, "min_tokens") or 0, integer(body, "n")
    n = 1 if n is None else n
    temperature = number(body, "temperature")
    temperature = 1.0 if temperature is None else temperature
    messages: list[dict[str, Any]] = []
    if api == "completions":
        given = _completion_prompts(body)
    else:
        messages = {"chat": _messages, "messages": _system_first, "responses": _input_messages}[api](body)
    if options and not stream:
        raise bad_value("Stream options can only be defined when `stream=True`.", "stream_options", admitted=False)
    tool, named, schema = (None, False, None) if api == "completions" else tool_to_call(body, chat=api == "chat")

    if body.get("model") and body["model"] != model:
        raise no_model(body["model"], model)
    if api == "responses" and (previous := body.get("previous_response_id")):
        raise RefusedError(
            f"Response with id '{previous}' not found.", kind="invalid_request_error", status=404, param="response_id"
        )
    texts: list[str] = []
    if api == "completions":
        prompts = [part if isinstance(part, list) else tokens.encode(part) for part in given]
        texts = [part if isinstance(part, str) else tokens.decode(part) for part in given]
    elif (ids := _given_ids(params)) is not None:
        prompts = [ids]
    else:
        if not messages:
            raise RefusedError("Cannot apply chat template to an empty conversation. Provide at least one message.")
        generation = boolean(body, "add_generation_prompt", True)
        final = boolean(body, "continue_final_message")
        prompts = [
            tokens.render(messages, tools=body.get("tools"), add_generation_prompt=generation, continue_final=final)
        ]
    if api == "completions" and wanted is None:
        wanted = 16
    granted = limits.max_model_len
    for prompt in prompts:
        granted = min(granted, _check_length(len(prompt), wanted, limit_field, limits))
        if not prompt:
            raise RefusedError("The decoder prompt cannot be empty")
        for worst in (min(prompt), max(prompt)):
            if not 0 <= worst < tokens.VOCABULARY:
                raise RefusedError(f"Token id {worst} is out of vocabulary")
    _check_sampling(body, n, temperature, granted, min_tokens)
    return Ask(
        api=api,
        body=body,
        prompts=prompts,
        prompt_texts=texts,
        sampling=Sampling(
            max_tokens=granted,
            min_tokens=min_tokens,
            ignore_eos=boolean(body, "ignore_eos"),
            stop_ids=frozenset(body.get("stop_token_ids") or ()),
            forced=forced_answer(body, schema, tool, hash(tuple(prompts[0]))),
        ),
        n=n,
        stream=stream,
        usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_ids=boolean(body, "return_token_ids"),
        echo=boolean(body, "echo") and api == "completions",
        logprobs=_logprobs(api, body),
        stop=stop_strings(body, "stop_sequences" if api == "messages" else "stop"),
        keep_stop=boolean(body, "include_stop_str_in_output"),
        tool=tool,
        named_tool=named,
        salt=body.get("cache_salt"),
        params=params,
    )


def _wanted_tokens(api: Api, body: Mapping[str, Any]) -> tuple[str, int | None]:
    """(field that limits the answer, its value)."""
    if api == "messages":
        if "max_tokens" not in body:
            raise bad_body("missing", "body.max_tokens", "Field required", body)
        wanted = integer(body, "max_tokens")
        if wanted is not None and wanted <= 0:
            error = ValueError("max_tokens must be positive")
            raise bad_body("value_error", "body.max_tokens", f"Value error, {error}", wanted, {"error": error})
        return "max_completion_tokens", wanted
    if api == "responses":
        return "max_output_tokens", integer(body, "max_output_tokens")
    most, newer = integer(body, "max_tokens"), integer(body, "max_completion_tokens")
    if api == "chat" and newer is not None:
        return "max_completion_tokens", newer
    return "max_tokens", most


def _logprobs(api: Api, body: Mapping[str, Any]) -> int | None:
    if api == "chat":
        return integer(body, "top_logprobs") or 0 if boolean(body, "logprobs") else None
    return integer(body, "logprobs") if api == "completions" else None
