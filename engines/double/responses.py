"""`/v1/responses` on the way out."""

from collections.abc import Sequence as Many
from typing import Any

from msgspec import json

from engines.double.answer import Choice, Delta, Usage
from engines.double.ask import Ask
from engines.double.formats import Head, calls_tool, named_sse


class Responses:
    """One answer of the responses API."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head
        self._number = -1
        self._item = ("fc_" if ask.tool else "msg_") + head.ids.next()
        self._call = f"chatcmpl-tool-{head.ids.next()}"

    def _event(self, kind: str, **fields: Any) -> bytes:
        """An event with its keys in alphabetical order, as the real one's."""
        self._number += 1
        fields |= {"sequence_number": self._number, "type": kind}
        return named_sse({key: fields[key] for key in sorted(fields)})

    def opening(self) -> list[bytes]:
        empty = self._object("in_progress", [], None, None, None)
        return [
            self._event("response.created", response=empty),
            self._event("response.in_progress", response=empty),
        ]

    def begin(self) -> list[bytes]:
        if self._ask.tool is not None:
            item = self._function("in_progress", "")
            return [self._event("response.output_item.added", item=item, output_index=0)]
        item = self._message("in_progress", [])
        part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return [
            self._event("response.output_item.added", item=item, output_index=0),
            self._event("response.content_part.added", **self._place(), part=part),
        ]

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._item, "output_index": 0}

    def delta(self, delta: Delta) -> list[bytes]:
        if not delta.text:
            return []
        if self._ask.tool is not None:
            kind = "response.function_call_arguments.delta"
            return [self._event(kind, delta=delta.text, item_id=self._item, output_index=0)]
        return [self._event("response.output_text.delta", **self._place(), delta=delta.text, logprobs=[])]

    def end(self, usage: Usage, choices: Many[Choice]) -> list[bytes]:
        choice = choices[0]
        if self._ask.tool is not None:
            item = self._function("completed", choice.text)
            done = {"item_id": self._item, "output_index": 0, "name": self._ask.tool, "arguments": choice.text}
            events = [self._event("response.function_call_arguments.done", **done)]
        else:
            part = self._part(choice.text)
            item = self._message("completed", [part])
            events = [
                self._event("response.output_text.done", **self._place(), logprobs=[], text=choice.text),
                self._event("response.content_part.done", **self._place(), part=part),
            ]
        events.append(self._event("response.output_item.done", item=item, output_index=0))
        whole = self._finished(usage, choice, [item], None)
        events.append(self._event("response.completed", response=whole))
        return events

    def failed(self) -> list[bytes] | None:
        return None

    def whole(self, usage: Usage, choices: Many[Choice], params: dict[str, Any] | None) -> bytes:
        choice = choices[0]
        if calls_tool(self._ask, choice):
            item = self._function("completed", choice.text)
        else:
            self._item = "msg_" + self._item.partition("_")[2]
            item = self._message("completed", [self._part(choice.text)])
        return json.encode(self._finished(usage, choice, [item], params))

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}

    def _message(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": self._item,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _function(self, status: str, arguments: str) -> dict[str, Any]:
        return {
            "arguments": arguments,
            "call_id": self._call,
            "name": self._ask.tool,
            "type": "function_call",
            "id": self._item,
            "async": None,
            "caller": None,
            "namespace": None,
            "status": status,
        }

    def _finished(
        self, usage: Usage, choice: Choice, output: list[Any], params: dict[str, Any] | None
    ) -> dict[str, Any]:
        short = {"reason": "max_output_tokens"} if choice.finish == "length" else None
        return self._object("incomplete" if short else "completed", output, _usage(usage), short, params)

    def _object(
        self,
        status: str,
        output: list[Any],
        usage: dict[str, Any] | None,
        incomplete: dict[str, str] | None,
        params: dict[str, Any] | None,
    ) -> dict[str, Any]:
        body = self._ask.body
        temperature, top_p = body.get("temperature"), body.get("top_p")
        return {
            "id": self._head.id,
            "created_at": self._head.created,
            "incomplete_details": incomplete,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": self._head.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "temperature": 1.0 if temperature is None else float(temperature),
            "tool_choice": body.get("tool_choice", "auto" if body.get("tools") else "none"),
            "tools": [_tool(tool) for tool in body.get("tools") or []],
            "top_p": 1.0 if top_p is None else float(top_p),
            "background": False,
            "max_output_tokens": self._ask.sampling.max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": body.get("reasoning"),
            "service_tier": "auto",
            "status": status,
            "text": body.get("text"),
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": usage,
            "user": body.get("user"),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": params,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tool.get("name"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict"),
        "type": "function",
        "allowed_callers": None,
        "async": None,
        "defer_loading": None,
        "description": tool.get("description"),
        "output_schema": None,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.created,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": usage.completion,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": usage.prompt + usage.completion,
    }
