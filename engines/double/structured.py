"""Answers whose form is given: tool calls and JSON by schema. The double fills them in by the prompt's hash."""

from collections.abc import Mapping
from typing import Any

from msgspec import json

from engines.double import tokens
from engines.double.errors import RefusedError, bad_body, bad_value


def tool_to_call(body: Mapping[str, Any], *, chat: bool) -> tuple[str | None, bool, Any]:
    """(name of the tool to call, whether it was named, its parameters' schema) of chat and responses."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if chat and tools == []:
        message = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise bad_value(message, "tools", admitted=False)
    if choice in (None, "none", "auto"):
        if choice == "auto" and tools is None:
            raise bad_value("When using `tool_choice`, `tools` must be set.", "tool_choice", admitted=False)
        return None, False, None
    if not tools:
        raise bad_value("When using `tool_choice`, `tools` must be set.", "tool_choice", admitted=False)
    known = {}
    for at, tool in enumerate(tools):
        function = tool.get("function") or tool
        if not isinstance(function.get("name"), str):
            raise bad_body("missing", f"body.tools.{at}.function.name", "Field required", function)
        known[function["name"]] = function.get("parameters") or function.get("input_schema") or {}
    if choice in ("required", "any") or (isinstance(choice, dict) and choice.get("type") == "any"):
        name = next(iter(known))
        return name, False, known[name]
    if not isinstance(choice, dict):
        message = f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" '
        raise bad_value(message + "are supported.", "tool_choice", admitted=False)
    if choice.get("type") in ("auto", "none"):
        return None, False, None
    function = choice.get("function") or choice
    if not isinstance(function, dict):
        message = (
            f"Invalid value for `function`: `{function}` in `tool_choice`! Correct usage: "
            '`{"type": "function", "function": {"name": "my_function"}}`'
        )
        raise bad_value(message, "tool_choice.function", admitted=False)
    name = function.get("name")
    if not isinstance(name, str) or name not in known:
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


def forced_answer(body: Mapping[str, Any], schema: Any, tool: str | None, seed: int) -> tuple[int, ...] | None:
    """The tokens of a structured answer, if the request wants one. Raises `RefusedError` for a schema that is none."""
    try:
        return _forced(body, schema, tool, seed)
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        raise RefusedError(f"Invalid JSON schema: {error}") from None
