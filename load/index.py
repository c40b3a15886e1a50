"""`baton load index`: what the prefix index costs, in this process and in Redis or Valkey, on a generated fleet."""

import json
from contextlib import ExitStack
from functools import partial
from typing import Annotated

import typer
import uvloop
from redis import RedisError
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer import Option

from gateway.index.contract import Lost, Unavailable
from gateway.index.embedded import Embedded
from gateway.index.memory import MemoryIndex
from gateway.index.redis import IndexMisconfigured, RedisIndex
from load.bar import bar
from load.bench import Bench, Figures
from load.lookups import Wrong
from load.neighbours import neighbours
from load.prefixes import Workload
from load.server import Server

EMBEDDED = "embedded"
NAMESPACE = "benchmark"

_BUDGET_S = 5.0
"""Of one lookup: what is slow shall be seen, not cut off."""

_FAILURES = (Wrong, Unavailable, Lost, IndexMisconfigured, RedisError, OSError)


def measure(
    url: str | None,
    pairs: int,
    holders: int,
    mixed_s: float,
    soak: int,
    seed: int,
    progress: Progress,
    gateways: int = 1,
) -> Figures:
    """Measure the index in this process, then the one in the server of `url`; all answers are checked.

    Raises ValueError for a fleet that is too small, `Wrong` for a wrong answer, `Unavailable`, `Lost`.
    """
    figures: Figures = {}
    memory = Bench(MemoryIndex(), Workload(pairs, holders, seed), progress)
    found = uvloop.run(memory.run(mixed_s, 0 if url else soak))
    figures |= {f"memory.{name}": value for name, value in found.items()}
    if url:
        figures |= uvloop.run(_measure_redis(url, Workload(pairs, holders, seed), mixed_s, soak, progress, gateways))
    return figures


async def _measure_redis(
    url: str, workload: Workload, mixed_s: float, soak: int, progress: Progress, gateways: int
) -> Figures:
    with ExitStack() as stack:
        if url == EMBEDDED:
            url = stack.enter_context(Embedded()).url
        server = stack.enter_context(Server(url))
        index = await RedisIndex.connect(url, NAMESPACE, budget_s=_BUDGET_S)
        try:
            others = partial(neighbours, url, NAMESPACE, index, workload, server, gateways) if gateways > 1 else None
            return await Bench(index, workload, progress, server).run(mixed_s, soak, others)
        finally:
            await index.close()


def index(
    redis: Annotated[str, Option(help="URL of a server that nobody else uses, or `embedded`; else memory only.")] = "",
    pairs: Annotated[int, Option(help="Blocks resident, counted once for each engine.")] = 1_000_000,
    holders: Annotated[int, Option(help="Engines.")] = 64,
    gateways: Annotated[
        int, Option(min=1, metavar="N", help="With --redis: lookups also while so many tell each other their loads.")
    ] = 1,
    mixed: Annotated[float, Option(min=0, metavar="SECONDS", help="Look up and write at once; 0 leaves it out.")] = 5.0,
    soak: Annotated[int, Option(min=0, metavar="BLOCKS", help="Write so many more; memory must not grow.")] = 0,
    seed: Annotated[int, Option(help="Of the generated fleet.")] = 1,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the prefix index: lookups, writing, memory; every answer is checked.

    Figures are the best of several rounds, since other work on the machine only adds to them.
    """
    try:
        with bar() as progress:
            figures = measure(redis, pairs, holders, mixed, soak, seed, progress, gateways)
    except ValueError as error:
        typer.secho(f"baton load index: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except _FAILURES as error:
        typer.secho(f"baton load index: {error or type(error).__name__}", fg="red", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        Console().print(_table(figures))


def _table(figures: Figures) -> Table:
    table = Table(title="Prefix index: best of rounds", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.0f}" if value >= 1000 else f"{value:.3g}")
    return table
