"""A request's body, read and checked in the order and with the words of vLLM's protocol classes."""

import json as stdlib_json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import DecodeError, json

from engines.double import tokens
from engines.double.engine import Limits
from engines.double.errors import RefusedError, bad_body, bad_value, no_model
from engines.double.sequence import Sampling

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


def parse(raw: bytes, content_type: str) -> dict[str, Any]:
    """The body as a JSON object. Raises `RefusedError`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise RefusedError(
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            kind="Bad Request",
            admitted=False,
        )
    if not raw:
        raise bad_body("missing", "body", "Field required", None)
    try:
        body = json.decode(raw)
    except (DecodeError, RecursionError):
        try:
            body = stdlib_json.loads(raw)
        except stdlib_json.JSONDecodeError as error:
            where = f"body.{error.pos}"
            raise bad_body("json_invalid", where, "JSON decode error", {}, {"error": error.msg}) from None
        except (UnicodeDecodeError, RecursionError):
            raise RefusedError("There was an error parsing the body", kind="Bad Request", admitted=False) from None
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise bad_body("model_attributes_type", "body", message, body)
    return body


def _integer(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise bad_body("int_parsing", f"body.{name}", message, value) from None
    raise bad_body("int_type", f"body.{name}", "Input should be a valid integer", value)


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        message = "Input should be a valid number, unable to parse string as a number"
        raise bad_body("float_parsing", f"body.{name}", message, value) from None


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
    return messages


def _tool(body: Mapping[str, Any], api: Api) -> tuple[str | None, bool, Any]:
    """(name of the tool to call, whether it was named, its parameters' schema) of chat and responses."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if api == "chat" and tools == []:
        message = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise bad_value(message, "tools", admitted=False)
    if choice in (None, "none", "auto"):
        if choice == "auto" and tools is None:
            raise bad_value("When using `tool_choice`, `tools` must be set.", "tool_choice", admitted=False)
        return None, False, None
    if not tools:
        raise bad_value("When using `tool_choice`, `tools` must be set.", "tool_choice", admitted=False)
    known = {}
    for tool in tools:
        function = tool.get("function") or tool
        known[function.get("name")] = function.get("parameters") or function.get("input_schema") or {}
    if choice in ("required", "any") or (isinstance(choice, dict) and choice.get("type") == "any"):
        name = next(iter(known))
        return name, False, known[name]
    if not isinstance(choice, dict):
        message = f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" '
        raise bad_value(message + "are supported.", "tool_choice", admitted=False)
    if choice.get("type") in ("auto", "none"):
        return None, False, None
    name = (choice.get("function") or choice).get("name")
    if name not in known:
        message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise bad_value(message, "tool_choice", admitted=False)
    return name, True, known[name]


def sample_value(schema: Any, seed: int) -> Any:
    """Some value that fits a JSON schema (the plain parts of it), the same for the same seed."""
    if not isinstance(schema, Mapping):
        return "word"
    if "const" in schema:
        return schema["const"]
    if choices := schema.get("enum"):
        return choices[seed % len(choices)]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        parts = schema.get("properties", {}).items()
        return {name: sample_value(part, hash((seed, at))) for at, (name, part) in enumerate(parts)}
    if kind == "array":
        return [sample_value(schema.get("items"), hash((seed, 1)))]
    if kind in ("integer", "number"):
        return int(schema.get("minimum", 0)) + seed % 10
    if kind == "boolean":
        return bool(seed & 1)
    if kind == "null":
        return None
    return ("kibo", "mare", "tulo", "sena")[seed % 4][: schema.get("maxLength", 4)]


def _forced(body: Mapping[str, Any], schema: Any, tool: str | None, seed: int) -> tuple[int, ...] | None:
    """The tokens of a structured answer, if the request wants one."""
    if tool is not None:
        return tuple(tokens.encode(json.encode(sample_value(schema, seed))))
    wanted = body.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type") in ("json_object", "json_schema"):
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        return tuple(tokens.encode(json.encode(sample_value(schema or {"properties": {"answer": {}}}, seed))))
    structured = body.get("structured_outputs")
    if isinstance(structured, Mapping):
        if structured.get("json") is not None:
            schema = structured["json"]
            schema = json.decode(schema) if isinstance(schema, str) else schema
            return tuple(tokens.encode(json.encode(sample_value(schema, seed))))
        if choices := structured.get("choice"):
            return tuple(tokens.encode(str(choices[seed % len(choices)])))
    return None


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
    if temperature < 0:
        raise bad_value(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature > 2:
        raise bad_value(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    top_p = _number(body, "top_p")
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
    params = body.get("kv_transfer_params")
    if params is not None and not isinstance(params, dict):
        raise bad_body("dict_type", "body.kv_transfer_params", "Input should be a valid dictionary", params)
    stream = bool(body.get("stream"))
    options = body.get("stream_options") or {}
    limit_field, wanted = _wanted_tokens(api, body)
    min_tokens, n = _integer(body, "min_tokens") or 0, _integer(body, "n")
    n = 1 if n is None else n
    temperature = _number(body, "temperature")
    temperature = 1.0 if temperature is None else temperature
    messages: list[dict[str, Any]] = []
    if api == "completions":
        given = _completion_prompts(body)
    else:
        messages = {"chat": _messages, "messages": _system_first, "responses": _input_messages}[api](body)
    if options and not stream:
        raise bad_value("Stream options can only be defined when `stream=True`.", "stream_options", admitted=False)
    tool, named, schema = (None, False, None) if api == "completions" else _tool(body, api)

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
        generation = body.get("add_generation_prompt", True)
        final = bool(body.get("continue_final_message"))
        prompts = [
            tokens.render(messages, tools=body.get("tools"), add_generation_prompt=generation, continue_final=final)
        ]
    if api == "completions" and wanted is None:
        wanted = 16
    granted = limits.max_model_len
    for prompt in prompts:
        granted = min(granted, _check_length(len(prompt), wanted, limit_field, limits))
        if (worst := max(prompt, default=0)) >= tokens.VOCABULARY:
            raise RefusedError(f"Token id {worst} is out of vocabulary")
    _check_sampling(body, n, temperature, granted, min_tokens)
    stop = body.get("stop_sequences" if api == "messages" else "stop") or ()
    return Ask(
        api=api,
        body=body,
        prompts=prompts,
        prompt_texts=texts,
        sampling=Sampling(
            max_tokens=granted,
            min_tokens=min_tokens,
            ignore_eos=bool(body.get("ignore_eos")),
            stop_ids=frozenset(body.get("stop_token_ids") or ()),
            forced=_forced(body, schema, tool, hash(tuple(prompts[0]))),
        ),
        n=n,
        stream=stream,
        usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_ids=bool(body.get("return_token_ids")),
        echo=bool(body.get("echo")) and api == "completions",
        logprobs=_logprobs(api, body),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        keep_stop=bool(body.get("include_stop_str_in_output")),
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
        wanted = _integer(body, "max_tokens")
        if wanted is not None and wanted <= 0:
            error = ValueError("max_tokens must be positive")
            raise bad_body("value_error", "body.max_tokens", f"Value error, {error}", wanted, {"error": error})
        return "max_completion_tokens", wanted
    if api == "responses":
        return "max_output_tokens", _integer(body, "max_output_tokens")
    most, newer = _integer(body, "max_tokens"), _integer(body, "max_completion_tokens")
    if api == "chat" and newer is not None:
        return "max_completion_tokens", newer
    return "max_tokens", most


def _logprobs(api: Api, body: Mapping[str, Any]) -> int | None:
    if api == "chat":
        return int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
    if api == "completions" and body.get("logprobs") is not None:
        return int(body["logprobs"])
    return None
