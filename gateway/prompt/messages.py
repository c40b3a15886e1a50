"""Messages and tools as an engine hands them to a chat template.

Only what is rebuilt here exactly is read; everything else raises `Unread`, and the request goes without ids.
Source: vLLM `renderers/chat_utils.py`, `parse_chat_messages` and `_postprocess_messages`.
"""

import json
from typing import Any

Message = dict[str, Any]

_ROLES = frozenset(("system", "user", "assistant", "tool", "developer"))
_BILLING = "x-anthropic-billing-header"
"""A line that one client puts in front of its system prompt, different in each request; engines drop it."""


class Unread(Exception):
    """This shape is not mirrored; the message says which."""


def conversation(messages: object, parts: bool) -> list[Message]:
    """The messages for a template that takes content as parts (`parts`) or as strings. Raises `Unread`."""
    if not isinstance(messages, list) or not messages:
        raise Unread("messages are not a list")
    return [_message(message, parts) for message in messages]


def _message(message: object, parts: bool) -> Message:
    if not isinstance(message, dict):
        raise Unread("a message is not an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unread("a role of its own")
    made: Message = {"role": role, "content": _content(message, role, parts)}
    if role == "assistant":
        if calls := message.get("tool_calls"):
            if not isinstance(calls, list):
                raise Unread("tool_calls are not a list")
            made["tool_calls"] = [_call(call) for call in calls]
        reasoning = message.get("reasoning")
        reasoning = message.get("reasoning_content") if reasoning is None else reasoning
        if reasoning is not None:
            if not isinstance(reasoning, str):
                raise Unread("reasoning is not a string")
            made["reasoning"] = made["reasoning_content"] = reasoning
    elif role == "tool":
        if "tool_call_id" not in message:
            raise Unread("a tool message without tool_call_id")
        made["tool_call_id"] = message["tool_call_id"]
        if parts:
            made["content"] = "\n".join(part["text"] for part in made["content"])
    for name in ("name", "task"):
        if isinstance(message.get(name), str):
            made[name] = message[name]
    if role == "developer":
        if message.get("tools") is not None:
            raise Unread("tools in a message")
        made["tools"] = None
    return made


def _content(message: Message, role: str, parts: bool) -> str | list[Message]:
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise Unread("a message without content")
        texts = []
    elif isinstance(content, str):
        texts = [content]
    elif isinstance(content, list):
        texts = [_text(part) for part in content]
    else:
        raise Unread("content is neither text nor parts")
    if role == "system":
        texts = [text for given in texts if (text := _unbilled(given)) is not None]
    if parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(text for text in texts if text)


def _text(part: object) -> str:
    if isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text":
        text = part["text"]
        if isinstance(text, str):
            return text
    raise Unread("a content part that is not plain text")


def _unbilled(text: str) -> str | None:
    if not text.startswith(_BILLING):
        return text
    return text.partition("\n")[2] or None


def _call(call: object) -> Message:
    """A tool call with its arguments as an object, keys in the order of the engine's own types."""
    if not isinstance(call, dict) or call.keys() != {"id", "type", "function"} or call["type"] != "function":
        raise Unread("a tool call with fields of its own")
    function = call["function"]
    if not isinstance(function, dict) or function.keys() != {"name", "arguments"}:
        raise Unread("a tool call with fields of its own")
    if not all(isinstance(text, str) for text in (call["id"], function["name"], function["arguments"])):
        raise Unread("a tool call whose arguments are not a string")
    return {
        "id": call["id"],
        "function": {"arguments": _arguments(function["arguments"]), "name": function["name"]},
        "type": "function",
    }


def _arguments(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def tools(given: object) -> list[Message] | None:
    """Tools as the template sees them. Raises `Unread`."""
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise Unread("tools are not a list")
    return [_tool(tool) for tool in given]


def _tool(tool: object) -> Message:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type", "function") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unread("a tool that is not a function")
    if "defer_loading" in function or (isinstance(tool, dict) and "defer_loading" in tool):
        raise Unread("a tool that loads later")
    made = {
        "name": function["name"],
        "description": function.get("description"),
        "parameters": function.get("parameters"),
    }
    if made["description"] is not None and not isinstance(made["description"], str):
        raise Unread("a description that is not a string")
    if made["parameters"] is not None and not isinstance(made["parameters"], dict):
        raise Unread("parameters that are not an object")
    if function.get("strict") is not None:
        made["strict"] = function["strict"]
    return {"type": "function", "function": made}


def without_developer(messages: list[Message]) -> list[Message]:
    """For templates that do not know the role: developers are systems, and all systems are one, in front."""
    if not any(message["role"] == "developer" for message in messages):
        return messages
    changed = []
    for message in messages:
        if message["role"] == "developer":
            message = {name: value for name, value in message.items() if name != "tools"} | {"role": "system"}
        changed.append(message)
    systems = [message for message in changed if message["role"] == "system"]
    if len(systems) == 1 and changed[0] is systems[0]:
        return changed
    texts = [text for message in systems if (text := _joined(message["content"]))]
    return [{"role": "system", "content": "\n\n".join(texts)}, *(m for m in changed if m["role"] != "system")]


def _joined(content: str | list[Message]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
