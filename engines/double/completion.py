"""`/v1/completions` on the way out."""

from collections.abc import Sequence as Many
from typing import Any

from msgspec import json

from engines.double.answer import Choice, Delta, Usage
from engines.double.ask import Ask
from engines.double.errors import STREAM_INTERNAL
from engines.double.formats import DONE, FINGERPRINT, Head, last_usage_object, logprob, sse, usage_object


class Completion:
    """One answer of the plain completions API; choices of all prompts are numbered through."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head
        chunk = {"id": head.id, "object": "text_completion", "created": head.created, "model": head.model}
        self._chunk: dict[str, Any] = chunk
        self._prefix = b"data: " + json.encode(chunk)[:-1] + b',"choices":[{"index":'
        self._plain = not (ask.return_ids or ask.continuous_usage or ask.echo or ask.logprobs is not None)
        self._counts = [0] * (ask.n * len(ask.prompts))

    def opening(self) -> list[bytes]:
        return []

    def begin(self) -> list[bytes]:
        return []

    def delta(self, delta: Delta) -> list[bytes]:
        if self._plain and delta.finish is None:
            return [
                b'%s%d,"text":%s,"logprobs":null,"finish_reason":null,"stop_reason":null,'
                b'"prompt_token_ids":null,"token_ids":null}]}\n\n'
                % (self._prefix, delta.choice, json.encode(delta.text))
            ]
        ask = self._ask
        prompt = delta.choice // ask.n
        first = not self._counts[delta.choice]
        self._counts[delta.choice] += len(delta.ids)
        text = ask.prompt_texts[prompt] + delta.text if ask.echo and first and not ask.return_ids else delta.text
        choice = {
            "index": delta.choice,
            "text": text,
            "logprobs": None if ask.logprobs is None else _logprobs(delta.ids, ask.logprobs),
            "finish_reason": delta.finish,
            "stop_reason": delta.stop_reason,
            "prompt_token_ids": ask.prompts[prompt] if first and (ask.return_ids or ask.echo) else None,
            "token_ids": delta.ids if ask.return_ids else None,
        }
        chunk: dict[str, Any] = {**self._chunk, "choices": [choice]}
        if ask.continuous_usage:
            sent, count = len(ask.prompts[prompt]), self._counts[delta.choice]
            chunk["usage"] = {"prompt_tokens": sent, "total_tokens": sent + count, "completion_tokens": count}
        if delta.finish is not None and not ask.usage:
            chunk["system_fingerprint"] = FINGERPRINT
        return [sse(chunk)]

    def end(self, usage: Usage, choices: Many[Choice]) -> list[bytes]:
        if not self._ask.usage:
            return [DONE]
        counts = last_usage_object(usage, None)
        return [sse({**self._chunk, "choices": [], "usage": counts, "system_fingerprint": FINGERPRINT}), DONE]

    def failed(self) -> list[bytes] | None:
        return [STREAM_INTERNAL, DONE]

    def whole(self, usage: Usage, choices: Many[Choice], params: dict[str, Any] | None) -> bytes:
        return json.encode(
            {
                **self._chunk,
                "choices": [self._choice(choice) for choice in choices],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": usage_object(usage, None),
                "kv_transfer_params": params,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def _choice(self, choice: Choice) -> dict[str, Any]:
        ask = self._ask
        prompt = choice.number // ask.n
        before = ask.prompt_texts[prompt] if ask.echo and not ask.return_ids else ""
        return {
            "index": choice.number,
            "text": before + choice.text,
            "logprobs": None if ask.logprobs is None else _logprobs(choice.ids, ask.logprobs),
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.ids if ask.return_ids else None,
            "prompt_logprobs": None,
            "prompt_token_ids": ask.prompts[prompt] if ask.return_ids else None,
            "routed_experts": None,
        }


def _logprobs(ids: list[int], top: int) -> dict[str, Any]:
    entries = [logprob(token) for token in ids]
    offsets, at = [], 0
    for entry in entries:
        offsets.append(at)
        at += len(entry["token"])
    return {
        "text_offset": offsets,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "tokens": [entry["token"] for entry in entries],
        "top_logprobs": [{entry["token"]: entry["logprob"]} if top else None for entry in entries],
    }
