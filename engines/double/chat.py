"""`/v1/chat/completions` on the way out."""

from collections.abc import Sequence as Many
from typing import Any

from msgspec import json

from engines.double.answer import Choice, Delta, Usage
from engines.double.ask import Ask
from engines.double.errors import STREAM_INTERNAL
from engines.double.formats import (
    DONE,
    FINGERPRINT,
    Head,
    calls_tool,
    last_usage_object,
    logprob,
    prompt_ids,
    sse,
    usage_object,
)


class Chat:
    """One chat answer."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head
        chunk = {"id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model}
        self._chunk: dict[str, Any] = chunk
        self._prefix = b"data: " + json.encode(chunk)[:-1] + b',"choices":[{"index":'
        self._plain = not (ask.tool or ask.return_ids or ask.continuous_usage or ask.logprobs is not None)
        self._counts = [0] * ask.n
        self._called = [False] * ask.n

    def opening(self) -> list[bytes]:
        return []

    def begin(self) -> list[bytes]:
        return [self._role(index) for index in range(self._ask.n)]

    def _role(self, index: int) -> bytes:
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        tail = {"prompt_token_ids": prompt_ids(self._ask), "prompt_text": None}
        return sse({**self._chunk, "choices": [choice], **self._so_far(0), **tail})

    def _so_far(self, completion: int) -> dict[str, Any]:
        if not self._ask.continuous_usage:
            return {}
        prompt = len(self._ask.prompts[0])
        return {
            "usage": {
                "prompt_tokens": prompt,
                "total_tokens": prompt + completion,
                "completion_tokens": completion,
                "completion_tokens_details": None,
            }
        }

    def delta(self, delta: Delta) -> list[bytes]:
        if self._plain and delta.finish is None:
            return [
                b'%s%d,"delta":{"content":%s},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
                % (self._prefix, delta.choice, json.encode(delta.text))
            ]
        return self._full_delta(delta)

    def _full_delta(self, delta: Delta) -> list[bytes]:
        events: list[bytes] = []
        self._counts[delta.choice] += len(delta.ids)
        content: dict[str, Any] = {"content": delta.text}
        if self._ask.tool is not None:
            if not self._called[delta.choice]:
                self._called[delta.choice] = True
                call = {
                    "id": f"chatcmpl-tool-{self._head.ids.next()}",
                    "type": "function",
                    "index": 0,
                    "function": {"name": self._ask.tool},
                }
                events.append(self._event(delta, {"content": None, "tool_calls": [call]}, first=True))
            piece = {"index": 0, "function": {"arguments": delta.text}}
            content = {"content": None, "tool_calls": [piece]} if delta.text else {}
        events.append(self._event(delta, content))
        return events

    def _event(self, delta: Delta, content: dict[str, Any], first: bool = False) -> bytes:
        ask = self._ask
        finish = None if first else delta.finish
        choice: dict[str, Any] = {
            "index": delta.choice,
            "delta": content,
            "logprobs": None if first or ask.logprobs is None else _logprobs(delta.ids, ask.logprobs),
            "finish_reason": finish,
        }
        if finish is not None:
            if finish == "stop" and ask.tool and not ask.named_tool:
                choice["finish_reason"] = "tool_calls"
            choice["stop_reason"] = delta.stop_reason
        choice["token_ids"] = delta.ids if ask.return_ids and not first else None
        chunk: dict[str, Any] = {**self._chunk, "choices": [choice], **self._so_far(self._counts[delta.choice])}
        if finish is not None and not ask.usage:
            chunk["system_fingerprint"] = FINGERPRINT
        return sse(chunk)

    def end(self, usage: Usage, choices: Many[Choice]) -> list[bytes]:
        if not self._ask.usage:
            return [DONE]
        last = {
            **self._chunk,
            "choices": [],
            "usage": last_usage_object(usage, usage.created),
            "system_fingerprint": FINGERPRINT,
        }
        return [sse(last), DONE]

    def failed(self) -> list[bytes] | None:
        return [STREAM_INTERNAL, DONE]

    def whole(self, usage: Usage, choices: Many[Choice], params: dict[str, Any] | None) -> bytes:
        return json.encode(
            {
                "id": self._head.id,
                "object": "chat.completion",
                "created": self._head.created,
                "model": self._head.model,
                "choices": [self._choice(choice) for choice in choices],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": usage_object(usage, usage.created),
                "prompt_logprobs": None,
                "prompt_token_ids": prompt_ids(self._ask),
                "prompt_text": None,
                "kv_transfer_params": params,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def _choice(self, choice: Choice) -> dict[str, Any]:
        ask = self._ask
        calls: dict[str, Any] = {}
        finish, content = choice.finish, choice.text
        if calls_tool(ask, choice):
            function = {"name": ask.tool, "arguments": choice.text}
            call = {"id": f"chatcmpl-tool-{self._head.ids.next()}", "type": "function", "function": function}
            calls = {"tool_calls": [call]}
            content = ""
            finish = "stop" if ask.named_tool else "tool_calls"
        return {
            "index": choice.number,
            "message": {
                "role": "assistant",
                "content": content,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                **calls,
                "reasoning": None,
            },
            "logprobs": None if ask.logprobs is None else _logprobs(choice.ids, ask.logprobs),
            "finish_reason": finish,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids if ask.return_ids else None,
            "routed_experts": None,
        }


def _logprobs(ids: list[int], top: int) -> dict[str, Any]:
    content = []
    for token in ids:
        entry = logprob(token)
        content.append({**entry, "top_logprobs": [entry] if top else []})
    return {"content": content}
