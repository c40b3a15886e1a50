"""`/v1/messages` (Anthropic's API) on the way out."""

from collections.abc import Sequence as Many
from typing import Any

from msgspec import json

from engines.double.answer import Choice, Delta, Usage
from engines.double.ask import Ask
from engines.double.formats import Head, calls_tool, named_sse

_STREAM_FAILED = (
    b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"Internal server error"}}\n\n'
)


class Messages:
    """One answer of the messages API."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head

    def opening(self) -> list[bytes]:
        return []

    def begin(self) -> list[bytes]:
        usage = {"input_tokens": len(self._ask.prompts[0]), "output_tokens": 0}
        head = self._head
        message: dict[str, Any] = {"id": head.id, "type": "message", "role": "assistant", "content": []}
        message |= {"model": head.model, "stop_reason": None, "stop_sequence": None, "usage": usage}
        block: dict[str, Any] = {"type": "text", "text": ""}
        if self._ask.tool is not None:
            block = {
                "type": "tool_use",
                "id": f"chatcmpl-tool-{head.ids.next()}",
                "name": self._ask.tool,
                "input": {},
            }
        return [
            named_sse({"type": "message_start", "message": message}),
            named_sse({"type": "content_block_start", "content_block": block, "index": 0}),
        ]

    def delta(self, delta: Delta) -> list[bytes]:
        if not delta.text:
            return []
        if self._ask.tool is None:
            piece = {"type": "text_delta", "text": delta.text}
        else:
            piece = {"type": "input_json_delta", "partial_json": delta.text}
        return [named_sse({"type": "content_block_delta", "delta": piece, "index": 0})]

    def end(self, usage: Usage, choices: Many[Choice]) -> list[bytes]:
        reason, sequence = self._stop(choices[0])
        end = {"stop_reason": reason, "stop_sequence": sequence}
        return [
            named_sse({"type": "content_block_stop", "index": 0}),
            named_sse({"type": "message_delta", "delta": end, "usage": _usage(usage)}),
            named_sse({"type": "message_stop"}),
        ]

    def failed(self) -> list[bytes] | None:
        return [_STREAM_FAILED]

    def whole(self, usage: Usage, choices: Many[Choice], params: dict[str, Any] | None) -> bytes:
        choice, head = choices[0], self._head
        block: dict[str, Any] = {"type": "text", "text": choice.text}
        if calls_tool(self._ask, choice):
            block = {
                "type": "tool_use",
                "id": f"chatcmpl-tool-{head.ids.next()}",
                "name": self._ask.tool,
                "input": json.decode(choice.text),
            }
        reason, sequence = self._stop(choice)
        answer: dict[str, Any] = {"id": head.id, "type": "message", "role": "assistant", "content": [block]}
        answer |= {"model": head.model, "stop_reason": reason}
        if sequence is not None:
            answer["stop_sequence"] = sequence
        answer["usage"] = _usage(usage)
        if params is not None:
            answer["kv_transfer_params"] = params
        return json.encode(answer)

    def _stop(self, choice: Choice) -> tuple[str, str | None]:
        if choice.finish == "length":
            return "max_tokens", None
        if self._ask.tool is not None:
            return "tool_use", None
        if isinstance(choice.stop_reason, str):
            return "stop_sequence", choice.stop_reason
        return "end_turn", None


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": max(0, usage.prompt - usage.cached - usage.created),
        "output_tokens": usage.completion,
        "cache_creation_input_tokens": usage.created,
        "cache_read_input_tokens": usage.cached,
    }
