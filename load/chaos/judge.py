"""Is an answer right? Token by token, and everything around the tokens that a client relies on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from load.chaos.traffic import Ask

Kind = Literal["right", "wrong", "lost", "doubled", "error", "severed"]
"""lost, doubled: the tokens are right but some are missing or come twice. error: one that the client can parse, and
nothing wrong before it. severed: the connection broke in the middle of an answer without a word."""


UNREADABLE = "unreadable"
"""What an error begins with whose body no client could parse."""


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Kind
    why: str = ""


RIGHT = Verdict("right")


@dataclass(slots=True)
class Answer:
    """What came back."""

    status: int = 0
    """0: not even a head."""
    body: list[bytes] = field(default_factory=list)
    """Events of a stream, or the whole body."""
    ended: bool = False
    """In order, as HTTP ends an answer."""
    left: bool = False
    """The client left before the end."""


def judge(ask: Ask, answer: Answer) -> Verdict:
    """What became of one request whose answer has begun."""
    try:
        if answer.status != 200:
            return _refused(answer.status, b"".join(answer.body)) if answer.ended else Verdict("severed", "in an error")
        if ask.stream:
            return _stream(ask, answer)
        return _whole(ask, b"".join(answer.body)) if answer.ended else Verdict("severed", "in a whole answer")
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        return Verdict("wrong", f"cannot be read: {type(error).__name__}: {error}")


def _refused(status: int, body: bytes) -> Verdict:
    try:
        return Verdict("error", code(msgspec.json.decode(body)))
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
        return Verdict("error", f"{UNREADABLE} {status}")


def code(body: dict[str, Any]) -> str:
    """The code of an error object, or its type where it has none. Raises `LookupError` if it is none."""
    error = body["error"]
    if not error["message"]:
        raise KeyError("message")
    return str(error.get("code") or error["type"])


def _whole(ask: Ask, body: bytes) -> Verdict:
    answer = msgspec.json.decode(body)
    choice = answer["choices"][0]
    text = choice["message"]["content"] if ask.chat else choice["text"]
    if (verdict := compare(ask.right.pieces, text)).kind != "right":
        return verdict
    if choice["finish_reason"] != ask.right.finish:
        return Verdict("wrong", f"finish_reason {choice['finish_reason']}, not {ask.right.finish}")
    return _usage(ask, answer["usage"])


def _usage(ask: Ask, usage: dict[str, Any]) -> Verdict:
    counted = usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
    right = ask.right.prompt_tokens, ask.right.completion_tokens
    if counted != (*right, sum(right)):
        return Verdict("wrong", f"usage {counted}, not {(*right, sum(right))}")
    return RIGHT


def _stream(ask: Ask, answer: Answer) -> Verdict:
    text: list[str] = []
    ids: set[str] = set()
    finish: list[str] = []
    usages: list[dict[str, Any]] = []
    done = roles = 0
    error = ""
    for raw in answer.body:
        data = _data(raw)
        if data is None:
            continue
        if done:
            return Verdict("doubled", "something after [DONE]")
        if data == b"[DONE]":
            done += 1
            continue
        if error:
            return Verdict("wrong", f"something after the error {error}")
        event = msgspec.json.decode(data)
        if "error" in event:
            error = code(event)
            continue
        ids.add(event["id"])
        if event.get("usage"):
            usages.append(event["usage"])
        for choice in event["choices"]:
            delta = choice["delta"] if ask.chat else choice
            if ask.chat and "role" in delta:
                roles += 1
                if text:
                    return Verdict("wrong", "a role in the middle")
            text.append((delta.get("content") if ask.chat else delta["text"]) or "")
            if choice["finish_reason"]:
                finish.append(choice["finish_reason"])
    said = "".join(text)
    if error or not answer.ended:
        if not ask.right.text.startswith(said):
            return compare(ask.right.pieces, said)
        if error:
            return Verdict("error", error)
        return RIGHT if answer.left else Verdict("severed", f"after {len(said)} of {len(ask.right.text)} characters")
    if (verdict := compare(ask.right.pieces, said)).kind != "right":
        return verdict
    if not done:
        return Verdict("lost", "no [DONE]")
    if finish != [ask.right.finish]:
        return Verdict("wrong", f"finish_reason {finish}, not {ask.right.finish}")
    if len(ids) != 1:
        return Verdict("wrong", f"{len(ids)} ids in one stream")
    if ask.chat and roles != 1:
        return Verdict("wrong", f"{roles} roles")
    if len(usages) != ask.usage:
        return Verdict("wrong", f"{len(usages)} usages, {ask.usage:d} asked for")
    return _usage(ask, usages[0]) if usages else RIGHT


def _data(event: bytes) -> bytes | None:
    """What an SSE event carries; None for a comment."""
    for line in event.split(b"\n"):
        if line.startswith(b"data: "):
            return line[6:]
    return None


def compare(right: Sequence[str], said: str) -> Verdict:
    """Text against the right tokens: the same, or what is different."""
    whole = "".join(right)
    if said == whole:
        return RIGHT
    at = next((i for i, (a, b) in enumerate(zip(said, whole, strict=False)) if a != b), min(len(said), len(whole)))
    where = f"at character {at} of {len(whole)}"
    rest = said[at:]
    if _is_rest(rest, whole, range(at + 1, len(whole) + 1)):
        return Verdict("lost", f"{where}: {whole[at : at + 20]!r}")
    starts = range(len(whole)) if at == len(whole) else range(at)
    if rest and _is_rest(rest, whole, starts):
        return Verdict("doubled", f"{where}: {rest[:20]!r}")
    return Verdict("wrong", f"{where}: {rest[:20]!r}, not {whole[at : at + 20]!r}")


def _is_rest(rest: str, whole: str, starts: range) -> bool:
    """Whether `rest` is how the right text goes on from one of these places."""
    return any(whole[start:] == rest for start in starts)
