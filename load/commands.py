"""`baton load`: verbs that make traffic and measure."""

import dataclasses
import json
import statistics
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Option

from engines import sheet
from load.bar import bar
from load.fit.command import fit
from load.gateways import gateways
from load.index import index
from load.live.command import check
from load.live.playing import play
from load.prompt import prompt
from load.relay import NAMES, OURS, WORKS, Figures, filled, measure, surroundings

app = typer.Typer(help="Make traffic and measure.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def load() -> None:
    """Make traffic and measure."""


app.command()(fit)
app.command()(check)
app.command()(play)
app.command()(index)
app.command()(gateways)
app.command()(prompt)


@app.command()
def relay(
    work: Annotated[list[str] | None, Option(help=f"Load to measure; may be repeated: {', '.join(WORKS)}.")] = None,
    seconds: Annotated[float, Option(min=0.1, help="Of each run.")] = 3.0,
    rounds: Annotated[int, Option(min=1, help="All targets take turns in each; medians are shown.")] = 3,
    peer: Annotated[
        list[str] | None, Option(help="NAME=COMMAND of another gateway, with {port} {p0} {p1} {d0} {d1}.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what relaying costs a gateway: CPU per request and per streamed event.

    Stand-ins for engines and a load generator that checks every answer share one core, the gateway has another. Times
    on a shared machine are noisy: compare targets of one run with each other.
    """
    usual = [name for name, known in WORKS.items() if known.usual]
    unknown = set(work or ()) - set(WORKS)
    if unknown:
        typer.secho(f"baton load relay: no work {', '.join(unknown)}: use {', '.join(WORKS)}", fg="red", err=True)
        raise typer.Exit(2)
    targets = dict(OURS)
    for given in peer or ():
        try:
            _add(targets, *given.partition("=")[::2])
        except ValueError as error:
            typer.secho(f"baton load relay: --peer {error}", fg="red", err=True)
            raise typer.Exit(2) from None
    plan = [(name, target) for _ in range(rounds) for name in work or usual for target in targets]
    runs: dict[tuple[str, str], list[Figures]] = {}
    status = 0
    try:
        with surroundings() as names, bar() as progress:
            task = progress.add_task("measuring", total=len(plan))
            for name, target in plan:
                progress.update(task, description=f"{target}: {name}")
                runs.setdefault((name, target), []).append(measure(targets[target], WORKS[name], seconds, names))
                progress.advance(task)
    except KeyboardInterrupt:
        typer.echo("stopped; what was measured until then:" if any(runs.values()) else "stopped", err=True)
        status = 130
    except RuntimeError as error:
        until = "; what was measured until then:" if any(runs.values()) else ""
        typer.secho(f"baton load relay: {error}{until}", fg="red", err=True)
        status = 1
    medians = {key: _median(figures) for key, figures in runs.items() if figures}
    if as_json:
        typer.echo(json.dumps([{"work": w, "target": t, **dataclasses.asdict(f)} for (w, t), f in medians.items()]))
    elif medians:
        sheet.show(_table(medians), Console())
    if status or any(figures.bad for figures in medians.values()):
        raise typer.Exit(status or 1)


def _add(targets: dict[str, str], name: str, command: str) -> None:
    """Add a peer. Raises `ValueError`."""
    if not name or not command:
        raise ValueError(f"{name!r}: write NAME=COMMAND")
    if name in targets:
        raise ValueError(f"{name!r}: that name is taken: choose another")
    filled(command, dict.fromkeys(NAMES, ""))
    targets[name] = command


def _median(runs: list[Figures]) -> Figures:
    """Figure by figure; counts are summed."""

    return Figures(
        cpu_us=statistics.median(run.cpu_us for run in runs),
        per=runs[0].per,
        rps=statistics.median(run.rps for run in runs),
        ttft_p50_ms=statistics.median(run.ttft_p50_ms for run in runs),
        ttft_p99_ms=statistics.median(run.ttft_p99_ms for run in runs),
        gap_p99_ms=statistics.median(run.gap_p99_ms for run in runs),
        rss_mb=statistics.median(run.rss_mb for run in runs),
        completed=sum(run.completed for run in runs),
        bad=sum(run.bad for run in runs),
    )


def _table(medians: dict[tuple[str, str], Figures]) -> Table:
    table = Table(
        title="Relay cost: CPU of the gateway per request, or per event of a stream (TTFT, gap: ms); medians",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("work", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("CPU µs", "req/s", "TTFT", "p99", "gap p99", "MB", "answers", "bad"):
        table.add_column(name, justify="right", no_wrap=True)
    for (work, target), f in medians.items():
        gap = _short(f.gap_p99_ms) if f.gap_p99_ms else ""
        times = (_short(f.ttft_p50_ms), _short(f.ttft_p99_ms), gap)
        counts = (str(f.completed), str(f.bad))
        table.add_row(work, target, _short(f.cpu_us), f"{f.rps:.0f}", *times, f"{f.rss_mb:.0f}", *counts)
    return table


def _short(figure: float) -> str:
    return f"{figure:.{0 if figure >= 100 else 1}f}"
