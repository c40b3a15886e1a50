"""The requests of a run: what is asked and how the client behaves, a function of seed and number alone."""

import random
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from engines.double import tokens
from load.chaos.truth import Truth, truth

MODEL = "double"

Manner = Literal["stays", "leaves", "dawdles"]
"""A client that reads to the end; that goes away in the middle; that reads slowly."""

_SYLLABLES = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]
_DOCUMENTS = 24
"""Beginnings that many prompts share, so that caches matter."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, what is right to answer, and how its client behaves."""

    number: int
    path: str
    body: dict[str, Any]
    right: Truth
    manner: Manner = "stays"
    leave_after: int = 0
    """Events after which a client leaves."""
    gateway: int = 0
    """Which gateway is asked first; counted round."""

    @property
    def chat(self) -> bool:
        return self.path.endswith("chat/completions")

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def usage(self) -> bool:
        """Whether the stream ends with its usage."""
        return bool(self.body.get("stream_options"))

    def raw(self) -> bytes:
        """The request as it goes over the wire."""
        body = msgspec.json.encode(self.body)
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: baton\r\ncontent-type: application/json\r\n"
            f"x-request-id: chaos-{self.number}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def words(pick: random.Random, count: int) -> str:
    """So many words of nonsense, two to four tokens each."""
    return " ".join("".join(pick.choices(_SYLLABLES, k=pick.choice((2, 3)))) for _ in range(count))


def document(seed: int, number: int) -> str:
    """A text that several prompts begin with: 40 to 250 tokens."""
    pick = random.Random(f"{seed} document {number}")
    return words(pick, pick.randrange(15, 100))


def ask(seed: int, number: int) -> Ask:
    """Request `number` of a run."""
    pick = random.Random(f"{seed} request {number}")
    start = document(seed, pick.randrange(_DOCUMENTS)) if pick.random() < 0.7 else ""
    end = f"{number}: {words(pick, pick.randrange(2, 60))}"
    most = pick.choice((8, 16, 24, 32, 48, 64, 64, 96))
    stream = pick.random() < 0.88
    body: dict[str, Any] = {"model": MODEL, "max_tokens": most, "temperature": 0, "stream": stream}
    if stream and pick.random() < 0.7:
        body["stream_options"] = {"include_usage": True}
    if pick.random() < 0.6:
        path = "/v1/chat/completions"
        messages = [{"role": "system", "content": start}] if start else []
        body["messages"] = [*messages, {"role": "user", "content": end}]
        prompt = tokens.render(body["messages"])
    else:
        path = "/v1/completions"
        body["prompt"] = f"{start} {end}"
        prompt = tokens.encode(body["prompt"])
    right = truth(prompt, most)
    if pick.random() < 0.15:
        at = pick.randrange(len(right.text))
        body["stop"] = right.text[at : at + 5]
        right = truth(prompt, most, body["stop"])
    manner: Manner = "stays"
    if stream:
        manner = pick.choices(("stays", "leaves", "dawdles"), (90, 5, 5))[0]
    leave_after = pick.randrange(1, max(2, most // 2)) if manner == "leaves" else 0
    return Ask(number, path, body, right, manner, leave_after, pick.randrange(1 << 16))
