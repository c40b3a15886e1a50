"""Traces in real time: prompts of exactly the tokens and prefixes that the trace says, and what comes of them."""

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from engines.double import Double
from engines.double.folder import write_folder
from engines.double.limits import Limits
from engines.double.timing import Timing
from engines.model import profile
from engines.tiny_model import make_tiny_model
from load.client import Measured
from load.live.check import foretell
from load.live.play import Player
from load.live.prompts import BadTokenizer, Ids, Prompts, Words
from load.live.target import Target
from load.replay.trace import Ask, first, read, write
from load.replay.workload import generate
from tests.load.test_live import QUICK, baton, client, pair

SIZE = 16


def chat() -> list[Ask]:
    """Conversations, one request after the other, so that what is cached does not hang on the clock."""
    asks = generate("chat:rate=2,minutes=0.05,prompt=60,shared=64,answer=20,turns=3,think=0.01", SIZE, 3)
    return [replace(ask, at_s=0.0, after=at - 1, think_s=0.0) for at, ask in enumerate(asks)]


def test_words_are_one_token_each_wherever_they_stand(tmp_path: Path) -> None:
    """With byte-level BPE; the double's tokenizer is played below."""
    words = Words(make_tiny_model(tmp_path / "tokenizer"))
    asks = [Ask(0.0, 700, 10, tuple(range(43))), Ask(0.0, 333, 10, tuple(range(10, 30)))]
    prompts = Prompts(asks, SIZE, "salt", words)
    for index, ask in enumerate(asks):
        ids = prompts.of(index)
        text = prompts.written(ids)
        assert isinstance(text, str) and words.read(text) == list(ids) and len(ids) == ask.prompt


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json"):
        Words(tmp_path)


def test_equal_names_are_equal_tokens_and_an_answer_is_what_was_answered() -> None:
    """The third request contains the first one's answer and does not follow it; the fourth shares one block only."""
    asks = [
        Ask(0.0, 40, 24, (1, 2, 3, 4)),
        Ask(0.0, 70, 5, (1, 2, 3, 4), after=0),
        Ask(0.0, 70, 5, (1, 2, 3, 4)),
        Ask(0.0, 40, 5, (1, 9)),
    ]
    prompts = Prompts(asks, SIZE, "salt", Ids())
    one = prompts.of(0)
    answer = list(range(5000, 5024))
    prompts.answered(0, one, answer, "")
    two, three, four = (prompts.of(index) for index in (1, 2, 3))
    assert list(two[:64]) == [*one, *answer] == list(three[:64])
    assert two[64:] != three[64:]
    assert four[:16] == one[:16] and four[16:] != one[16:40]
    other = Prompts(asks, SIZE, "pepper", Ids())
    assert other.of(0)[:16] != one[:16] and len(other.of(0)) == 40
    assert [len(prompt) for prompt in (two, three, four)] == [70, 70, 40]


async def test_the_command_plays_a_trace_as_a_replay_does(tmp_path: Path) -> None:
    """Text and ids, a gateway and one engine: the same hits as foretold, and figures of every kind."""
    trace, out, tokenizer = tmp_path / "trace.jsonl", tmp_path / "out.json", write_folder(tmp_path / "tokenizer")
    write(chat(), trace, SIZE)
    asks = first(read(trace, SIZE), 12)
    given = ["--trace", str(trace), "--block-tokens", str(SIZE), "--requests", "12", "--json", str(out)]
    async with pair() as url, client() as http:
        target = await Target.find(http, url)
        jobs = foretell(asks, target, QUICK, "lmetric").jobs
        wanted = sum(job.cached for job in jobs) / sum(job.ask.prompt for job in jobs)
        for form in ([], ["--tokenizer", str(tokenizer)]):
            code, text, error = await baton("play", "--url", url, *given, *form)
            assert code == 0 and "TTFT" in text, error
            found = json.loads(out.read_text())
            assert (found["requests"], found["failed"], found["local_share"]) == (len(asks), 0, 0.0)
            assert found["hit_rate"] == pytest.approx(wanted, abs=0.06)
            assert 0 < found["itl_ms"]["mean"] < found["ttft_ms"]["mean"] < found["e2e_ms"]["mean"]
            assert {"look", "prefill", "decode"} <= found["stages_ms"].keys()
            assert found["slo_met"] == 1.0 and found["pulled_tb"] > 0
        code, text, _ = await baton("play", "--url", target.engines[1].url, *given)
        found = json.loads(out.read_text())
        assert code == 0 and found["local_share"] is None and found["hit_rate"] > 0
        code, _, error = await baton("play", "--url", url, "--workload", "fixed:rate=9,minutes=0.01,prompt=2000")
        assert code == 1 and "answered 400" in error


class Slowpoke:
    """An asker that needs a second to write each request, of a clock of its own."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def body(self, prompt: str | list[int], answer: int) -> bytes:
        self.now_s += 1.0
        return b""

    async def ask(self, raw: bytes, session: str) -> Measured:
        return Measured(sent_s=self.now_s, arrivals=[(0.1, 1)])


async def test_the_clock_starts_when_the_first_requests_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slowpoke()
    monkeypatch.setattr("load.live.play.time", slow)
    asks = [Ask(0.0, 40, 1, ()) for _ in range(5)]
    player = Player(slow, asks, Prompts(asks, SIZE, "salt", Ids()), "salt")
    await player.run(lambda ended: None)
    assert [(one.due_s, one.arrived_s) for one in player.played] == [(0.0, 0.0)] * 5


class Busy(Slowpoke):
    """It sees whether anything else goes on while it writes a later request."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.others = threading.Event()
        self.written: list[bool] = []

    def body(self, prompt: str | list[int], answer: int) -> bytes:
        self.others.clear()
        self.loop.call_soon_threadsafe(self.others.set)
        self.written.append(self.others.wait(2 * len(self.written)))
        return b""


async def test_tokens_are_noted_while_prompts_are_made() -> None:
    busy = Busy()
    asks = [Ask(0.0, 40, 1, ()), Ask(0.0, 40, 1, (), after=0)]
    await Player(busy, asks, Prompts(asks, SIZE, "salt", Ids()), "salt").run(lambda ended: None)
    assert busy.written == [False, True]


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--url", "http://127.0.0.1:9"], "one of them", 2),
        (["--url", "http://127.0.0.1:9", "--workload", "fixed", "--speed", "fast"], "write x2", 2),
        (["--url", "http://127.0.0.1:9", "--workload", "fixed"], "give the URL of a gateway", 1),
        (["--url", "http://127.0.0.1:9", "--trace", "none.jsonl"], "none.jsonl", 2),
    ],
)
async def test_mistakes_of_play_are_named(arguments: list[str], said: str, code: int) -> None:
    found, _, error = await baton("play", *arguments)
    assert (found, said in error) == (code, True), error


def test_a_profile_in_a_slower_world_keeps_all_proportions() -> None:
    name = "gpt-oss-120b-h100-tp4"
    one, four = profile.load(name), profile.load(f"{name}:4")
    assert four.prefill_s(5000, 100) == pytest.approx(4 * one.prefill_s(5000, 100))
    assert four.decode_s(9, 1e5) == pytest.approx(4 * one.decode_s(9, 1e5))
    assert (four.leg_s, four.second_leg_s, four.join_s) == (4 * one.leg_s, 4 * one.second_leg_s, 4 * one.join_s)
    assert (four.link_gbps, four.mix, four.kv_bytes_per_token) == (one.link_gbps / 4, one.mix, one.kv_bytes_per_token)
    with pytest.raises(profile.UnknownProfile, match="no profile 'none'"):
        profile.load("none:2")


async def test_doubles_take_the_ways_that_a_profile_says() -> None:
    timing = Timing.of(replace(QUICK, leg_s=0.05, second_leg_s=0.08))
    async with Double("both", timing=timing, limits=Limits(max_model_len=1024)) as double, client() as http:
        began_s = time.perf_counter()
        body = {"model": "m", "prompt": "x", "max_tokens": 1}
        assert (await http.post(f"{double.url}/v1/completions", json=body)).status_code == 200
        assert time.perf_counter() - began_s >= 0.05
