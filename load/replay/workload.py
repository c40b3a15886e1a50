"""Generated traffic: what recorded traces do not have, from a short text such as `agent:rate=4,minutes=10`."""

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Annotated

import msgspec

from load.replay.trace import Ask


class BadWorkload(ValueError):
    """The text names no workload; the message lists those there are."""


Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What every workload can be told."""

    rate: Positive = 4.0
    """New conversations a second, on average."""
    minutes: Positive = 10.0
    prompt: AtLeastOne = 2000
    """Tokens of a first prompt, on average."""
    answer: AtLeastOne = 250
    shared: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """Tokens that conversations of one group begin with."""
    groups: AtLeastOne = 8
    turns: AtLeastOne = 6
    think: Positive = 10.0
    """Seconds between the end of an answer and the next turn, on average."""


class _Maker:
    """Makes conversations out of named blocks."""

    def __init__(self, spec: Spec, block_tokens: int, seed: int) -> None:
        self.spec = spec
        self.size = block_tokens
        self.pick = random.Random(seed)
        self.fresh = count(1)
        self.asks: list[Ask] = []
        self._heads: dict[int, list[int]] = {}
        self._sessions = count()

    def arrivals(self, rate: float) -> Iterator[float]:
        """A Poisson process over the spec's minutes."""
        at = self.pick.expovariate(rate)
        while at < 60 * self.spec.minutes:
            yield at
            at += self.pick.expovariate(rate)

    def about(self, mean: float, least: int = 1) -> int:
        """A length with a long tail around a mean."""
        return max(least, int(self.pick.lognormvariate(0.0, 0.7) * mean / 1.278))

    def head(self, group: int, tokens: int) -> list[int]:
        """The first blocks of a group's conversations."""
        found = self._heads.setdefault(group, [])
        while len(found) < tokens // self.size:
            found.append(next(self.fresh))
        return found[: tokens // self.size]

    def talk(
        self,
        at_s: float,
        head: list[int],
        first: int,
        turns: int,
        more: Callable[[], int],
        answer: Callable[[], int],
        think: Callable[[], float],
        kind: str,
    ) -> None:
        """A conversation: each turn's prompt is all that was said before, and `more` tokens."""
        names, prompt, after = list(head), len(head) * self.size + first, -1
        session = f"s{next(self._sessions)}"
        for _ in range(turns):
            said = answer()
            while len(names) < (prompt + said) // self.size:
                names.append(next(self.fresh))
            self.asks.append(Ask(at_s, prompt, said, tuple(names), after, think(), session, kind))
            after = len(self.asks) - 1
            prompt += said + more()


def _fixed(m: _Maker) -> None:
    s = m.spec
    for at in m.arrivals(s.rate):
        m.talk(at, [], s.prompt, 1, lambda: 0, lambda: s.answer, lambda: 0.0, "fixed")


def _shared(m: _Maker) -> None:
    s = m.spec
    for at in m.arrivals(s.rate):
        head = m.head(m.pick.randrange(s.groups), s.shared)
        m.talk(at, head, m.about(s.prompt), 1, lambda: 0, lambda: m.about(s.answer), lambda: 0.0, "shared")


def _chat(m: _Maker) -> None:
    s = m.spec
    for at in m.arrivals(s.rate):
        head = m.head(m.pick.randrange(s.groups), s.shared)
        turns = min(4 * s.turns, 1 + int(m.pick.expovariate(1 / s.turns)))
        think = lambda: m.pick.expovariate(1 / s.think)  # noqa: E731
        m.talk(at, head, m.about(s.prompt), turns, lambda: m.about(120), lambda: m.about(s.answer), think, "chat")


def _agent(m: _Maker) -> None:
    """Code generation and tools: long shared contexts, many short steps, no human in between."""
    s = m.spec
    for at in m.arrivals(s.rate / s.turns):
        head = m.head(m.pick.randrange(s.groups), max(s.shared, 8 * s.prompt))
        think = lambda: m.pick.expovariate(1 / min(2.0, s.think))  # noqa: E731
        m.talk(at, head, m.about(s.prompt / 2), 3 * s.turns, lambda: m.about(300), lambda: m.about(120), think, "agent")


def _rag(m: _Maker) -> None:
    """Documents of a corpus, some much wanted, each read with a short question."""
    s = m.spec
    documents = 40 * s.groups
    weights = [1 / rank for rank in range(1, documents + 1)]
    for at in m.arrivals(s.rate):
        document = m.pick.choices(range(documents), weights)[0]
        m.talk(
            at,
            m.head(document, 4 * s.prompt),
            m.about(100),
            1,
            lambda: 0,
            lambda: m.about(s.answer),
            lambda: 0.0,
            "rag",
        )


def _burst(m: _Maker) -> None:
    """Quiet, and ten times the rate in one of ten seconds."""
    s = m.spec
    for at in m.arrivals(10 * s.rate):
        if at % 10 < 1 or m.pick.random() < 0.05:
            head = m.head(m.pick.randrange(s.groups), s.shared)
            m.talk(at, head, m.about(s.prompt), 1, lambda: 0, lambda: m.about(s.answer), lambda: 0.0, "burst")


def _mixed(m: _Maker) -> None:
    """Chat, agents and documents at once."""
    for make in (_chat, _agent, _rag):
        make(m)


WORKLOADS: dict[str, Callable[[_Maker], None]] = {
    "fixed": _fixed,
    "shared": _shared,
    "chat": _chat,
    "agent": _agent,
    "rag": _rag,
    "burst": _burst,
    "mixed": _mixed,
}


def generate(text: str, block_tokens: int, seed: int) -> list[Ask]:
    """`NAME` or `NAME:key=value,...` (keys as in `Spec`). Raises `BadWorkload`."""
    name, _, rest = text.partition(":")
    if name not in WORKLOADS:
        raise BadWorkload(f"no workload {name!r}: use one of {', '.join(WORKLOADS)}")
    try:
        options = dict(part.split("=", 1) for part in rest.split(",") if part)
        spec = msgspec.convert(options, Spec, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        keys = ", ".join(Spec.__struct_fields__)
        raise BadWorkload(f"{text!r}: {error}: write NAME:key=value,... with keys {keys}") from None
    if unknown := options.keys() - set(Spec.__struct_fields__):
        raise BadWorkload(f"{text!r}: no key {', '.join(unknown)}: use {', '.join(Spec.__struct_fields__)}")
    maker = _Maker(spec, block_tokens, seed)
    WORKLOADS[name](maker)
    if not maker.asks:
        raise BadWorkload(f"{text!r} makes no request: give a higher rate or more minutes")
    order = sorted(range(len(maker.asks)), key=lambda index: (maker.asks[index].at_s, index))
    place = {old: new for new, old in enumerate(order)}
    return [
        msgspec.structs.replace(ask, after=place[ask.after] if ask.after >= 0 else -1)
        for ask in (maker.asks[index] for index in order)
    ]
