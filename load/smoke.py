"""`baton smoke`: requests through a gateway, and what happened to each of them."""

import asyncio
import json
import secrets
import time
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Option

from load.client import Measured, RequestFailed, send
from load.counters import Pulled

SPLITS = "least_loaded"
"""A policy that has every request prefilled remotely."""

SETTLE_S = 15.0
"""How long an engine may take to show a transfer in its metrics."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request to try."""

    name: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a sample."""

    sample: Sample
    measured: Measured
    pulled: Pulled | None
    """By the decode engine; None if its metrics cannot be read from here."""
    why_whole: str = ""
    """Why it should have been split, if it was not; empty if a policy may well choose so."""

    @property
    def prefill(self) -> str | None:
        return self.measured.headers.get("x-baton-prefill")

    @property
    def decode(self) -> str:
        return self.measured.headers.get("x-baton-decode", "?")

    @property
    def wrong(self) -> str:
        """Why this is not what it should be; empty if it is."""
        if not self.measured.tokens_out:
            return "no token came back"
        if self.prefill is None:
            reason = self.measured.headers.get("x-baton-reason", "the gateway did not say why")
            return f"it was not split ({reason}), {self.why_whole}" if self.why_whole else ""
        if self.pulled is not None and not (self.pulled.tokens > 0 and self.pulled.bytes > 0):
            return f"{self.decode} counted no KV from {self.prefill}: it computed the prompt by itself"
        return ""

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "request": self.sample.name,
            "prefill": self.prefill,
            "decode": self.decode,
            "reason": self.measured.headers.get("x-baton-reason"),
            "tokens_in": self.measured.tokens_in,
            "tokens_out": self.measured.tokens_out,
            "tokens_pulled": self.pulled and self.pulled.tokens,
            "bytes_pulled": self.pulled and self.pulled.bytes,
            "prefill_s": self.measured.stage_s("prefill"),
            "ttft_s": self.measured.ttft_s,
            "tpot_s": self.measured.tpot_s,
            "e2e_s": self.measured.e2e_s,
            "wrong": self.wrong,
        }


def one(model: str) -> list[Sample]:
    """A short chat, streamed."""
    question = f"Session {secrets.token_hex(4)}. In one sentence: why is prefill separate from decode?"
    return [_chat(model, "chat stream", question, stream=True)]


def varied(model: str) -> list[Sample]:
    """Chat and completion, streamed and not, short and long, and a prefix that was seen before."""
    nonce = secrets.token_hex(4)  # so that nothing of it is cached from an earlier run
    guide = f"Guide {nonce}. " + "A gateway places each request where its keys and values already are. " * 12
    return [
        _chat(model, "chat stream", f"{nonce}: name three rivers.", stream=True),
        _chat(model, "chat", f"{nonce}: name three lakes.", stream=False),
        _completion(model, "text stream", f"{nonce}. Once upon a time, in a data centre,", stream=True),
        _completion(model, "long text", guide + "Summary:", stream=False),
        _completion(model, "shared prefix", guide + f"Question {nonce}: why? Answer:", stream=True),
    ]


def _chat(model: str, name: str, content: str, *, stream: bool) -> Sample:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 32, "stream": stream}
    return Sample(name, "/v1/chat/completions", body)


def _completion(model: str, name: str, prompt: str, *, stream: bool) -> Sample:
    return Sample(name, "/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 32, "stream": stream})


class Smoke:
    """Sends samples through one gateway and watches its engines' counters."""

    def __init__(self, http: httpx.AsyncClient, engines: httpx.AsyncClient, split: bool = False) -> None:
        """`http` for the gateway, with its key; `engines` without. With `split` requests must be prefilled remotely."""
        self._http = http
        self._engines = engines
        self._split = split
        self._urls: dict[str, str] = {}
        self._prefillers = False

    async def models(self) -> list[str]:
        """The models on offer; learns the engines on the way. Raises `RequestFailed`."""
        try:
            answer = await self._http.get("/v1/models")
            if answer.status_code == 401:
                raise RequestFailed(f"{self._http.base_url}: it wants a key: give one that it knows with --api-key")
            report = (await self._http.get("/readyz?verbose")).json()
            engines = report.get("engines", ())  # none where we are not on the gateway's machine
            self._urls = {engine["name"]: engine["url"] for engine in engines}
            self._prefillers = not engines or any(engine["takes"] in ("prefill", "both") for engine in engines)
            return [entry["id"] for entry in answer.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise RequestFailed(
                f"{self._http.base_url}: {error or type(error).__name__}: is a gateway there?"
            ) from error

    async def run(self, sample: Sample) -> Result:
        """Send one sample; waits until the decode engine's counters show it. Raises `RequestFailed`."""
        before = {name: await Pulled.read(self._engines, url) for name, url in self._urls.items()}
        measured = await send(self._http, sample.path, sample.body, {"x-baton-policy": SPLITS} if self._split else None)
        name = measured.headers.get("x-baton-decode", "")
        start = before.get(name)
        if "x-baton-prefill" not in measured.headers:
            return Result(sample, measured, None, self._why_whole(measured))
        if start is None:
            return Result(sample, measured, None)
        deadline = time.monotonic() + SETTLE_S
        while True:
            now = await Pulled.read(self._engines, self._urls[name])
            pulled = now - start if now is not None else None
            if pulled is None or (pulled.tokens > 0 and pulled.bytes > 0) or time.monotonic() > deadline:
                return Result(sample, measured, pulled)
            await asyncio.sleep(0.1)

    def _why_whole(self, measured: Measured) -> str:
        if self._split:
            return "but had to be: does the gateway let clients choose (policy_header)?"
        if not self._prefillers:
            return "for no prefill engine is up"
        return "for its prefill failed: the gateway's log says how" if "x-baton-attempts" in measured.headers else ""


def smoke(
    url: Annotated[str, Option(help="The gateway.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, Option(help="The model to ask. [default: the first that the gateway lists]")] = None,
    api_key: Annotated[str, Option(envvar="BATON_API_KEY", help="If the gateway asks for one.")] = "",
    demo: Annotated[bool, Option("--demo", help="Five varied requests, each checked, instead of one.")] = False,
    split: Annotated[
        bool, Option("--split", help="Have it prefilled remotely, whatever the policy (`baton serve --policy-header`).")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON, one object per request.")] = False,
    timeout_s: Annotated[float, Option(help="Per request.")] = 300.0,
) -> None:
    """Send a request through a gateway and show where it went and how long each step took.

    Exits with 1 if a request failed, or if the decode engine did not fetch the KV that was computed for it. A policy
    may have a request prefilled where it is decoded, `joint` does on idle engines: to see KV move, add --split.
    """
    raise typer.Exit(asyncio.run(_smoke(url, api_key, model, demo, split, as_json, timeout_s)))


async def _smoke(
    url: str, key: str, model: str | None, demo: bool, split: bool, as_json: bool, timeout_s: float
) -> int:
    console = Console()
    results: list[Result] = []
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s, trust_env=False) as http,
            httpx.AsyncClient(timeout=timeout_s, trust_env=False) as engines,
        ):
            smoker = Smoke(http, engines, split)
            models = await smoker.models()
            if not models:
                raise RequestFailed(f"{url}: no engine is up: see {url}/readyz?verbose")
            for sample in (varied if demo else one)(model or models[0]):
                result = await smoker.run(sample)
                results.append(result)
                if as_json:
                    typer.echo(json.dumps(result.facts()))
    except RequestFailed as error:
        typer.secho(f"baton smoke: {error}", fg="red", err=True)
        return 1
    if not as_json:
        console.print(_table(results) if demo else _story(results[0]))
    wrong = [f"{result.sample.name}: {result.wrong}" for result in results if result.wrong]
    for line in wrong:
        typer.secho(f"baton smoke: {line}", fg="red", err=True)
    return 1 if wrong else 0


def _story(result: Result) -> Table:
    """One request, step by step."""
    m = result.measured
    title = "One request, step by step"
    table = Table("step", "engine", "what happened", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    if result.prefill:
        table.add_row("prefill", result.prefill, f"{m.tokens_in} tokens in {_ms(m.stage_s('prefill'))}")
        table.add_row("transfer", f"{result.prefill} -> {result.decode}", _moved(result.pulled))
    else:
        table.add_row("prefill", result.decode, f"{m.tokens_in} tokens where it is decoded: no KV moves")
    table.add_row("decode", result.decode, f"{m.tokens_out} tokens, {_ms(m.tpot_s)} each")
    table.add_row("client", "", f"TTFT {_ms(m.ttft_s)}, all of it {_ms(m.e2e_s)}")
    table.add_row("why", "", m.headers.get("x-baton-reason", ""))
    table.add_row("answer", "", " ".join(m.text.split())[:160])
    return table


def _table(results: list[Result]) -> Table:
    """The placements of several requests, 80 columns wide."""
    table = Table(title="Placements", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("request", "prefill", "decode"):
        table.add_column(name, no_wrap=True)
    for name in ("in", "out", "pulled", "KV", "TTFT", "E2E"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        m = result.measured
        pulled, moved = (f"{result.pulled.tokens:.0f}", _size(result.pulled.bytes)) if result.pulled else ("?", "?")
        row = (result.sample.name, result.prefill or "-", result.decode)
        table.add_row(*row, str(m.tokens_in), str(m.tokens_out), pulled, moved, _ms(m.ttft_s), _ms(m.e2e_s))
    return table


def _moved(pulled: Pulled | None) -> str:
    return (
        "the engine's metrics cannot be read from here"
        if pulled is None
        else (f"{pulled.tokens:.0f} tokens, {_size(pulled.bytes)} of KV")
    )


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _size(count: float) -> str:
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"
