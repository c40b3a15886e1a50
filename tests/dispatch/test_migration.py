"""A stream whose engine dies goes on at another one, and the client cannot tell."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from msgspec import Raw

import policies.contract as contract
from engines.double import Double
from engines.double.tokens import SINGLES, encode
from engines.fleet import Role
from gateway.dispatch.exchange import Exchange
from gateway.dispatch.migrate import Stays, prove
from gateway.dispatch.seam import Seam
from gateway.dispatch.trail import Trail
from gateway.fleet.engine import Engine
from gateway.prompt.apis import COMPLETIONS
from policies.contract import Placement, Request
from tests.dispatch.test_trail import events
from tests.gateway.conftest import Gateway, until

PROMPT = "Never a lost token, never a doubled one. " * 8
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40}
TEXT: dict[str, Any] = {"model": "m", "prompt": PROMPT, "max_tokens": 40}
BOTH = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
USAGE = {"stream_options": {"include_usage": True}}


class First:
    """Always the first engines that there are."""

    def place(self, request: Request, fleet: contract.Fleet) -> Placement:
        prefill = fleet.prefillers[0].name if fleet.prefillers and not request.whole else None
        return Placement(decode=fleet.decoders[0].name, prefill=prefill, reason="first")


@dataclass
class Told:
    """What a client made of a stream."""

    text: str
    finish: list[str]
    stop: Any
    roles: int
    usage: dict[str, int] | None
    ids: set[str]
    created: set[int]
    error: dict[str, Any] | None
    token_ids: list[int]
    done: int
    chunks: list[dict[str, Any]]

    @classmethod
    def of(cls, stream: str) -> "Told":
        assert stream.endswith("\n\n")
        events = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
        chunks = [json.loads(event) for event in events if event != "[DONE]"]
        error = next((chunk["error"] for chunk in chunks if "error" in chunk), None)
        chunks = [chunk for chunk in chunks if "error" not in chunk]
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
        assert len(usages) <= 1
        return cls(
            text="".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices),
            finish=[c["finish_reason"] for c in choices if c["finish_reason"]],
            stop=next((c.get("stop_reason") for c in choices if c["finish_reason"]), None),
            roles=sum("role" in c.get("delta", {}) for c in choices),
            usage={name: usages[0][f"{name}_tokens"] for name in ("prompt", "completion", "total")} if usages else None,
            ids={chunk["id"] for chunk in chunks},
            created={chunk["created"] for chunk in chunks},
            error=error,
            token_ids=[token for c in choices for token in c.get("token_ids") or ()],
            done=events.count("[DONE]"),
            chunks=chunks,
        )


@dataclass
class Fleet:
    prefill: Double
    decoders: list[Double]
    judge: Double
    gateway: Gateway

    async def ask(self, path: str, body: dict[str, Any]) -> Told:
        answer = await self.gateway.http.post(path, json={**body, "stream": True})
        assert answer.status_code == 200, answer.text
        return Told.of(answer.text)

    async def right(self, path: str, body: dict[str, Any]) -> Told:
        """What one engine that lives says."""
        async with httpx.AsyncClient(base_url=self.judge.url, trust_env=False) as http:
            return Told.of((await http.post(path, json={**body, "stream": True})).text)

    def break_streams(self, after: int, how: str = "cut") -> None:
        """The next stream of every engine but the last breaks after so many events."""
        for double in self.decoders[:-1] or self.decoders:
            double.faults.set(**{f"{how}_after": after, "cut_next": 1})

    def moved(self, outcome: str = "moved") -> float:
        return self.gateway.metric("baton_migrations_total", outcome=outcome)

    async def settled(self) -> None:
        """Nothing is left anywhere."""
        for double in (self.prefill, *self.decoders):
            await double.idle()
        await until(lambda: self.gateway.booked() == 0)
        assert all(engine.pool.busy == 0 for engine in self.gateway.app.fleet)


@asynccontextmanager
async def make(decoders: int = 3, **settings: Any) -> AsyncIterator[Fleet]:
    async with Double("prefill", "p0") as p, Double("both", "j") as judge, Double("decode", "d0") as d0:
        async with Double("decode", "d1") as d1, Double("decode", "d2") as d2:
            doubles = [d0, d1, d2][:decoders]
            async with Gateway.over(
                p, *doubles, **{"send_ids": True, "policy": f"{__name__}:First", **settings}
            ) as gateway:
                await gateway.enrolled()
                yield Fleet(p, doubles, judge, gateway)


def assert_same(told: Told, right: Told) -> None:
    assert told.error is None
    assert told.text == right.text
    assert (told.finish, told.stop) == (right.finish, right.stop)
    assert told.roles == right.roles
    assert told.usage == right.usage
    assert (len(told.ids), len(told.created), told.done) == (1, 1, 1)


async def test_a_stream_goes_on_where_it_broke() -> None:
    async with make() as fleet:
        for path, body in BOTH:
            right = await fleet.right(path, {**body, **USAGE})
            for after in (1, 2, 3, 17, 39, 40, 41, 42):
                fleet.break_streams(after)
                told = await fleet.ask(path, {**body, **USAGE})
                assert_same(told, right)
                assert told.token_ids == []
                assert all(event["choices"][0]["token_ids"] is None for event in told.chunks[2:-1])
        assert fleet.moved() >= 6
        assert fleet.moved("completed") >= 2
        assert fleet.moved("stayed") == 0
        await fleet.settled()


async def test_an_engine_that_fails_inside_its_stream_is_left() -> None:
    """vLLM ends the stream in order, with an error event, when its core dies."""
    async with make() as fleet:
        for path, body in BOTH:
            fleet.break_streams(9, "fail")
            assert_same(await fleet.ask(path, body), await fleet.right(path, body))
        assert fleet.moved() >= 2


async def test_a_client_that_wants_ids_gets_each_once() -> None:
    async with make() as fleet:
        for path, body in BOTH:
            fleet.break_streams(11)
            asked = {**body, **USAGE, "return_token_ids": True}
            told, right = await fleet.ask(path, asked), await fleet.right(path, asked)
            assert_same(told, right)
            assert told.token_ids == right.token_ids
        assert fleet.moved() >= 2


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_is_found_across_the_cut(include: bool) -> None:
    async with make() as fleet:
        for path, body in BOTH:
            whole = (await fleet.right(path, body)).text
            for at in range(2, 20, 2):
                asked = {**body, "stop": [whole[at : at + 6], "zzz"], "include_stop_str_in_output": include}
                fleet.break_streams(6)
                assert_same(await fleet.ask(path, asked), await fleet.right(path, asked))
        assert fleet.moved() >= 8
        assert fleet.moved("stayed") == 0


async def test_what_remains_is_asked_for() -> None:
    async with make() as fleet:
        fleet.break_streams(11)
        body = {**CHAT, "max_completion_tokens": 30, "min_tokens": 20}
        assert_same(await fleet.ask("/v1/chat/completions", body), await fleet.right("/v1/chat/completions", body))
        asked = [r.json() for d in fleet.decoders for r in d.posts if r.path == "/v1/chat/completions"]
        first, *later = sorted((b for b in asked if b.get("stream")), key=lambda b: -b["max_tokens"])
        assert (first["max_tokens"], first["max_completion_tokens"], first["min_tokens"]) == (40, 30, 20)
        made = 40 - later[0]["max_tokens"]
        assert made > 0
        assert (later[0]["max_completion_tokens"], later[0]["min_tokens"]) == (30 - made, 20 - made)
        assert len(later[0]["kv_transfer_params"]["prompt_token_ids"]) > made


async def test_the_default_of_completions_is_what_remains() -> None:
    async with make() as fleet:
        fleet.break_streams(5)
        body = {"model": "m", "prompt": PROMPT}
        assert_same(await fleet.ask("/v1/completions", body), await fleet.right("/v1/completions", body))


STAY: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, "logprobs": True}),
    ("/v1/chat/completions", {**CHAT, "presence_penalty": 0.5}),
    ("/v1/chat/completions", {**CHAT, "n": 2, "temperature": 1.0}),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
    ("/v1/completions", {**TEXT, "echo": True}),
    ("/v1/completions", {**TEXT, "logprobs": 1}),
    ("/v1/responses", {"model": "m", "input": PROMPT, "max_output_tokens": 40}),
    ("/v1/messages", {"model": "m", "messages": CHAT["messages"], "max_tokens": 40}),
]


async def test_what_cannot_be_exact_ends_with_an_error() -> None:
    async with make() as fleet:
        for double in fleet.decoders:
            double.faults.cut_after = 7
        for number, (path, body) in enumerate(STAY, 1):
            answer = await fleet.gateway.http.post(path, json={**body, "stream": True})
            last = answer.text.rstrip("\n").rpartition("\n\n")[2]
            assert json.loads(last.split("data: ")[1])["error"]["code"] == "stream_cut"
            assert fleet.moved("stayed") == number
        await fleet.settled()


async def test_a_stream_moves_a_bounded_number_of_times() -> None:
    async with make(migrations=1) as fleet:
        for double in fleet.decoders:
            double.faults.set(cut_after=6)
        told = await fleet.ask("/v1/completions", TEXT)
        assert told.error is not None
        assert (fleet.moved(), fleet.moved("stayed")) == (1, 1)
        await fleet.settled()


async def test_with_nobody_else_the_stream_ends_with_an_error() -> None:
    async with make(decoders=1) as fleet:
        fleet.break_streams(6)
        told = await fleet.ask("/v1/completions", TEXT)
        assert told.error is not None
        assert told.text == (await fleet.right("/v1/completions", TEXT)).text[: len(told.text)]
        await fleet.settled()


async def proven(tokens: list[tuple[str, list[int]]], fields: dict[str, Any] | None = None) -> tuple[list[int], Seam]:
    """What a double says of a stream of which these deltas were delivered."""
    async with Double("decode", "d0") as double:
        engine = Engine("d0", double.url, Role.DECODE)
        trail = Trail(COMPLETIONS, False, False)
        for event in events(COMPLETIONS, [*tokens, ("end", [9])], encode("A prompt "), ids=True)[: len(tokens)]:
            trail(event, 1)
        raw = {name: Raw(json.dumps(value).encode()) for name, value in (fields or {}).items()}
        x = SimpleNamespace(request=Request(model="m", prompt_tokens=1), fields=raw)
        try:
            return await prove(cast(Exchange, x), trail, engine, 5.0)
        finally:
            engine.pool.close()


HALF = [SINGLES[byte] for byte in "é".encode()]


async def test_half_a_character_is_made_again() -> None:
    """The next engine's detokeniser would begin in its middle."""
    ids, _ = await proven([("ab", encode("ab")), ("", HALF[:1])])
    assert ids == encode("ab")
    ids, _ = await proven([("ab", [*encode("ab"), HALF[0]])])
    assert ids == encode("ab")
    ids, _ = await proven([("ab", encode("ab")), ("", HALF[:1]), ("é", HALF[1:])])
    assert ids == [*encode("ab"), *HALF]
    with pytest.raises(Stays, match="half a character"):
        await proven([("ab", [*encode("ab"), HALF[0]])], {"return_token_ids": True})


async def test_a_stream_whose_ids_say_something_else_stays() -> None:
    with pytest.raises(Stays):
        await proven([("ab", encode("ba"))])
    with pytest.raises(Stays):
        await proven([("ab", encode("abcd"))])  # something took the rest
    with pytest.raises(Stays):
        await proven([("abcd", encode("ab"))])
    ids, _ = await proven([("ab", encode("abcd"))], {"stop": "xyz"})  # held back for a stop string
    assert ids == encode("abcd")
