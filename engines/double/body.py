"""A request's body: JSON, and its numbers, as pydantic reads them in vLLM."""

import json as stdlib_json
from collections.abc import Mapping
from typing import Any

from msgspec import DecodeError, json

from engines.double.errors import RefusedError, bad_body


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


def integer(body: Mapping[str, Any], name: str) -> int | None:
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


def number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        message = "Input should be a valid number, unable to parse string as a number"
        raise bad_body("float_parsing", f"body.{name}", message, value) from None


def boolean(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    if not isinstance(value, str):
        raise bad_body("bool_type", f"body.{name}", "Input should be a valid boolean", value)
    if (word := value.lower()) in _TRUE or word in _FALSE:
        return word in _TRUE
    message = "Input should be a valid boolean, unable to interpret input"
    raise bad_body("bool_parsing", f"body.{name}", message, value)


_TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE = frozenset(("0", "off", "f", "false", "n", "no"))

_WORDS: dict[type, tuple[str, str]] = {
    dict: ("dict_type", "dictionary"),
    list: ("list_type", "list"),
    str: ("string_type", "string"),
    int: ("int_type", "integer"),
}

_SHAPES: dict[str, type] = {
    "cache_salt": str,
    "kv_transfer_params": dict,
    "model": str,
    "previous_response_id": str,
    "response_format": dict,
    "stop_token_ids": list,
    "stream_options": dict,
    "structured_outputs": dict,
    "tools": list,
}


def check(value: Any, kind: type, where: str) -> None:
    """Raise `RefusedError` unless `value` is of this kind."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        name, word = _WORDS[kind]
        raise bad_body(name, where, f"Input should be a valid {word}", value)


def check_shapes(body: Mapping[str, Any]) -> None:
    """The kinds of those fields that the double looks into. Raises `RefusedError`."""
    for name, kind in _SHAPES.items():
        if (value := body.get(name)) is not None:
            check(value, kind, f"body.{name}")
    for at, token in enumerate(body.get("stop_token_ids") or ()):
        check(token, int, f"body.stop_token_ids.{at}")
    for at, tool in enumerate(body.get("tools") or ()):
        check(tool, dict, f"body.tools.{at}")
        if "function" in tool:
            check(tool["function"], dict, f"body.tools.{at}.function")


def stop_strings(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """One string or a list of them. Raises `RefusedError`."""
    value = body.get(name) or []
    words = [value] if isinstance(value, str) else value
    check(words, list, f"body.{name}")
    for at, word in enumerate(words):
        check(word, str, f"body.{name}.{at}")
        if not word:
            raise RefusedError("stop cannot contain an empty string.")
    return tuple(words)
