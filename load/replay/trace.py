"""Traffic to replay: requests with their lengths, what their prompts share, and who waits for whom."""

import csv
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path

import msgspec

MOONCAKE_TOKENS = 512
"""Tokens per id in Mooncake's traces."""


class BadTrace(ValueError):
    """The file is not a trace; the message names the line."""


class Ask(msgspec.Struct, frozen=True):
    """One request."""

    at_s: float
    """When it is sent, from the beginning of the trace; later if what it follows has not ended by then."""
    prompt: int
    """Tokens."""
    answer: int
    """Tokens, at least 1."""
    names: Sequence[int]
    """The full blocks of prompt and answer, named so that equal names are equal prefixes."""
    after: int = -1
    """Index of the request that must have ended before this one is sent; -1: none."""
    think_s: float = 0.0
    """How long after that end it is sent at the earliest."""
    session: str = ""
    kind: str = ""
    """Class of traffic, for reports."""


def read(path: Path, block_tokens: int = MOONCAKE_TOKENS) -> list[Ask]:
    """A trace file: `.csv` as Azure publishes them, else JSON lines: Mooncake's, or what a gateway recorded.

    Raises `BadTrace`, also if the file's blocks are not of `block_tokens`.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadTrace(f"{path}: {error}") from None
    if path.suffix == ".csv":
        return azure(lines, block_tokens, path)
    size = blocks_of(lines)
    if size != block_tokens:
        raise BadTrace(f"{path}: its hashes are of {size} tokens each: give --block-tokens {size}")
    return mooncake(lines, path, size)


def blocks_of(lines: Sequence[str]) -> int:
    """Tokens that a hash of JSON lines stands for: the first line says so, or it is Mooncake's."""
    try:
        return msgspec.json.decode(lines[0], type=_Line).block_tokens
    except (IndexError, msgspec.DecodeError):
        return MOONCAKE_TOKENS


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []
    block_tokens: int = MOONCAKE_TOKENS
    end: float = 0.0
    """ms, if it was recorded; 0: not known."""
    session: str = ""


def mooncake(lines: Iterable[str], where: object = "trace", size: int = MOONCAKE_TOKENS) -> list[Ask]:
    """Mooncake's format: `timestamp` ms, `input_length`, `output_length`, `hash_ids` (one per 512 tokens, cumulative).

    The format does not say what was answered. A later request whose prompt begins with all of this one's and is longer
    than prompt and answer together is taken for the next turn: it tells the names of the answer's blocks, and may not
    be sent before this one has ended. A recording says more: of which session a request was, and when it ended; a turn
    that came after that end then keeps the time that its sender thought.
    """
    decoder = msgspec.json.Decoder(_Line)
    found: list[_Line] = []
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                found.append(decoder.decode(text))
            except msgspec.DecodeError as error:
                raise BadTrace(f"{where}:{number}: {error}") from None
    if not found:
        raise BadTrace(f"{where}: no request in it")
    found.sort(key=lambda line: line.timestamp)
    start_ms = found[0].timestamp
    having: dict[int, list[int]] = {}
    for index, line in enumerate(found):
        for name in line.hash_ids[: line.input_length // size]:
            having.setdefault(name, []).append(index)
    named: dict[str, list[int]] = {}
    for index, line in enumerate(found):
        if line.session:
            named.setdefault(line.session, []).append(index)
    fresh = count(-1, -1)
    asks: list[Ask] = []
    before: dict[int, int] = {}
    sessions: dict[int, str] = {}
    for index, line in enumerate(found):
        full, whole = line.input_length // size, line.input_length + max(1, line.output_length)
        names = line.hash_ids[:full]
        if line.session:
            turn = next((at for at in named[line.session] if at > index and found[at].timestamp >= line.end), -1)
        else:
            turn = _next_turn(index, names, whole, found, having)
        session = sessions.setdefault(index, line.session or f"s{index}")
        if turn >= 0 and turn not in before:
            before[turn], sessions[turn] = index, session
        last = whole // size
        more = found[turn].hash_ids[full:last] if turn >= 0 and found[turn].hash_ids[:full] == names else []
        more += [next(fresh) for _ in range(last - full - len(more))]
        previous = found[before[index]] if index in before else None
        think_ms = line.timestamp - previous.end if previous is not None and previous.end else 0.0
        asks.append(
            Ask(
                at_s=(line.timestamp - start_ms) / 1e3,
                prompt=max(1, line.input_length),
                answer=max(1, line.output_length),
                names=(*names, *more),
                after=before.get(index, -1),
                think_s=max(0.0, think_ms) / 1e3,
                session=session,
            )
        )
    return asks


def _next_turn(index: int, names: list[int], whole: int, lines: list[_Line], having: dict[int, list[int]]) -> int:
    """The first later request that goes on where this one ended; -1 if there is none."""
    if not names:
        return -1
    later = having[names[-1]]
    for candidate in later[bisect_right(later, index) :][:64]:
        if lines[candidate].input_length >= whole:
            return candidate
    return -1


def azure(lines: Iterable[str], block_tokens: int, where: object = "trace") -> list[Ask]:
    """Azure's LLM inference traces: CSV with TIMESTAMP, ContextTokens, GeneratedTokens; nothing is shared."""
    fresh = count(1)
    asks: list[Ask] = []
    start: datetime | None = None
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            prompt, answer = max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"]))
        except (KeyError, ValueError, TypeError) as error:
            raise BadTrace(f"{where}:{number}: {error!r}: wanted TIMESTAMP,ContextTokens,GeneratedTokens") from None
        start = start or at
        names = tuple(next(fresh) for _ in range((prompt + answer) // block_tokens))
        asks.append(Ask((at - start).total_seconds(), prompt, answer, names))
    if not asks:
        raise BadTrace(f"{where}: no request in it")
    return asks


def first(asks: Sequence[Ask], count: int | None) -> list[Ask]:
    """The first so many; None: all."""
    some = asks[:count]
    return [ask if ask.after < len(some) else msgspec.structs.replace(ask, after=-1) for ask in some]


def faster(asks: Sequence[Ask], speed: float) -> list[Ask]:
    """The same traffic in less time: gaps between arrivals shrink, think times with them."""
    return [msgspec.structs.replace(ask, at_s=ask.at_s / speed, think_s=ask.think_s / speed) for ask in asks]


def opened(asks: Sequence[Ask]) -> list[Ask]:
    """The same traffic, but nobody waits for the answer to the turn before."""
    return [msgspec.structs.replace(ask, after=-1) for ask in asks]


def copies(asks: Sequence[Ask], count: int) -> list[Ask]:
    """The same traffic `count` times at once, each with prefixes of its own, not in lockstep: for larger fleets."""
    if count == 1:
        return list(asks)
    shift = 1 + max((name for ask in asks for name in ask.names), default=0)
    low = min((name for ask in asks for name in ask.names), default=0)
    found = []
    for copy in range(count):
        for index, ask in enumerate(asks):
            names = tuple(name + copy * shift if name >= 0 else name + copy * low for name in ask.names)
            at_s = ask.at_s + 3.0 * copy / count
            after = count * ask.after + copy if ask.after >= 0 else -1
            session = f"{ask.session}.{copy}"
            one = msgspec.structs.replace(ask, at_s=at_s, names=names, after=after, session=session)
            found.append((index, copy, one))
    return [one for _, _, one in sorted(found, key=lambda row: row[:2])]


def write(asks: Sequence[Ask], path: Path, block_tokens: int = MOONCAKE_TOKENS) -> None:
    """Write a trace in Mooncake's format."""
    with path.open("w") as file:
        for ask in asks:
            line = {
                "timestamp": round(ask.at_s * 1e3),
                "input_length": ask.prompt,
                "output_length": ask.answer,
                "hash_ids": list(ask.names[: -(-ask.prompt // block_tokens)]),
            }
            if block_tokens != MOONCAKE_TOKENS:
                line["block_tokens"] = block_tokens
            file.write(json.dumps(line) + "\n")
