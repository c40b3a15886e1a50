"""`baton load play`: a trace in real time against whatever speaks OpenAI's API."""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Option

from load.live.asker import WireAsker
from load.live.command import TIMEOUT_S, bar, client, has_folders, needs, reported
from load.live.figures import Counted, Figures, figures
from load.live.play import Player
from load.live.prompts import Form, Ids, Prompts, Words
from load.live.target import Target, Unreachable
from load.replay.trace import MOONCAKE_TOKENS, Ask, faster, first, read
from load.replay.workload import WORKLOADS, BadWorkload, generate
from load.slo import Slo


class Wish(NamedTuple):
    """What the command line asked for."""

    url: str
    model: str | None
    api_key: str
    engines: tuple[str, ...]
    asks: list[Ask]
    block_tokens: int
    form: Form
    slo: Slo
    salt: str


async def played(wish: Wish) -> tuple[Figures, list[str]]:
    """Play it; also the first few different failures. Ctrl-C leaves what had ended. Raises `Unreachable`."""
    async with client(wish.api_key) as http:
        target = await Target.find(http, wish.url, wish.model)
        if too_long := sum(ask.prompt + ask.answer > target.longest for ask in wish.asks):
            typer.echo(f"{too_long} requests are longer than the model's {target.longest} tokens", err=True)
        urls = wish.engines or tuple(e.url for e in target.engines if e.seen)
        before = await Counted.read(http, urls)
        headers = {"authorization": f"Bearer {wish.api_key}"} if wish.api_key else {}
        asker = WireAsker(target.url, target.model, headers, TIMEOUT_S)
        player = Player(asker, wish.asks, Prompts(wish.asks, wish.block_tokens, wish.salt, wish.form), wish.salt)
        name = f"playing {len(wish.asks)} requests"
        try:
            with bar(name, len(wish.asks)) as told:
                await player.run(lambda ended: told(ended, name))
        except asyncio.CancelledError:
            typer.echo("stopped; what had ended until then:", err=True)
        finally:
            asker.close()
        after = await Counted.read(http, urls)
        if not player.played:
            raise Unreachable(f"{target.url}: no request was answered: {', '.join(player.failed[:1])}")
        known = target.gateway
        return figures(player.played, len(player.failed), before, after, known, wish.slo), _different(player.failed)


def _different(failed: list[str]) -> list[str]:
    return list(dict.fromkeys(failed))[:3]


def play(
    url: Annotated[str, Option(help="A gateway, or one engine.")],
    trace: Annotated[Path | None, Option(help="Mooncake's JSON lines, or Azure's CSV.")] = None,
    workload: Annotated[
        str | None, Option(help=f"Generated instead: NAME[:key=value,...]; {', '.join(WORKLOADS)}.")
    ] = None,
    speed: Annotated[str, Option(help="Arrivals so many times faster.")] = "x1",
    requests: Annotated[int | None, Option(min=1, help="Only the first so many.")] = None,
    block_tokens: Annotated[int, Option(min=1, help="Tokens of a block of the traffic.")] = MOONCAKE_TOKENS,
    tokenizer: Annotated[
        Path | None, Option(help="Folder of the model's: prompts are sent as text. [default: as token ids]")
    ] = None,
    engine: Annotated[
        list[str] | None, Option(help="URL of an engine whose counters tell the hit rate. [default: the gateway's]")
    ] = None,
    ttft_slo_s: Annotated[float, Option(min=0.001, help="A first token later than this is late.")] = 2.0,
    tpot_slo_ms: Annotated[float, Option(min=0.1, help="The same for the mean pause between tokens.")] = 50.0,
    model: Annotated[str | None, Option(help="[default: the first that is listed]")] = None,
    api_key: Annotated[str, Option(envvar="BATON_API_KEY", help="If the gateway asks for one.")] = "",
    salt: Annotated[str, Option(help="Prompts of one salt are the same each time. [default: new ones]")] = "",
    seed: Annotated[int, Option(help="Of generated traffic.")] = 1,
    out: Annotated[Path | None, Option("--json", help="Write the figures there; - for standard output.")] = None,
) -> None:
    """Play a trace in real time: requests are sent when they are due, whatever became of those before them.

    Prompts share what the trace says they share; a turn begins with what was really answered before. The figures are
    those of `baton replay`, measured. Exits with 1 if a request failed.
    """
    needs("play", "numpy", *(["tokenizers"] if tokenizer else []))
    has_folders("play", out)

    def run() -> tuple[Figures, list[str]]:
        if (trace is None) == (workload is None):
            raise BadWorkload("give --trace FILE or --workload NAME, one of them")
        asks = read(trace, block_tokens) if trace is not None else generate(workload or "", block_tokens, seed)
        try:
            times = float(speed.removeprefix("x"))
        except ValueError:
            times = 0.0
        if times <= 0:
            raise BadWorkload(f"--speed {speed!r}: write x2")
        asks = faster(first(asks, requests), times)
        form: Form = Words(tokenizer) if tokenizer is not None else Ids()
        slo = Slo(ttft_slo_s, tpot_slo_ms / 1e3)
        mine = salt or secrets.token_hex(4)
        wish = Wish(url, model, api_key, tuple(engine or ()), asks, block_tokens, form, slo, mine)
        return asyncio.run(played(wish))

    found, failures = reported("play", run)
    for line in failures:
        typer.secho(f"baton load play: {line}", fg="red", err=True)
    text = json.dumps(msgspec.to_builtins(found), indent=1)
    if str(out) == "-":
        typer.echo(text)
    else:
        show(found)
        if out is not None:
            out.write_text(text + "\n")
    raise typer.Exit(1 if found.failed else 0)


def show(found: Figures) -> None:
    """As tables."""
    table = Table(
        title=f"{found.requests} requests in {found.span_s:.0f} s, {found.failed} failed; ms",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for head in ("mean", "p50", "p90", "p99"):
        table.add_column(head, justify="right")
    spreads = {"TTFT": found.ttft_ms, "ITL": found.itl_ms, "TPOT": found.tpot_ms, "E2E": found.e2e_ms}
    for label, one in (spreads | {"sent late by": found.late_ms}).items():
        table.add_row(label, *(f"{value:.1f}" for value in msgspec.structs.astuple(one)))
    Console().print(table)
    shares = {"in time": found.slo_met, "hits": found.hit_rate, "one engine alone": found.local_share}
    told = [f"{label} {share:.1%}" for label, share in shares.items() if share is not None]
    moved = [] if found.pulled_tb is None else [f"{found.pulled_tb:.2f} TB of KV moved"]
    if found.stages_ms:
        typer.echo("mean of steps, ms: " + ", ".join(f"{name} {ms:.1f}" for name, ms in found.stages_ms.items()))
    typer.echo(", ".join([*told, f"{found.goodput_rps:.2f} requests/s in time", *moved]))
