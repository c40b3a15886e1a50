"""`baton load fit`: engine profiles from a table of measured closed-loop runs, or from engines that run."""

import json
import math
import re
import time
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import asdict, replace
from rich.console import Console
from typer import Option

from engines.model.profile import Profile, UnknownProfile, load
from load.bar import bar
from load.fit import report
from load.fit.coefficients import Values, profiles, speeds, start
from load.fit.doubts import doubts
from load.fit.kinds import Kind, held_out, kinds
from load.fit.search import Search
from load.fit.table import BadTable, Row, read
from load.live.command import Asked, fit_live, has_folders, needs, reported, show_solved, show_verdict, toml
from load.live.picture import draw

_NETWORKS = 0.15
"""Share of the time for networks that are all that was measured."""


def fit(
    table: Annotated[
        Path | None, Option(help="CSV of closed-loop runs, a row for each configuration and concurrency.")
    ] = None,
    url: Annotated[str | None, Option(help="Instead: a gateway or an engine that runs, to be probed.")] = None,
    out: Annotated[
        Path | None, Option(help="Directory for one profile per tensor-parallel size; with --url a .toml file.")
    ] = None,
    fresh: Annotated[
        bool, Option("--fresh", help="No run of the table sent prompts of an earlier one, as one seed for all does.")
    ] = False,
    seconds: Annotated[float, Option(min=0.1, help="How long to look for a table's profiles.")] = 75.0,
    tries: Annotated[int, Option(min=0, help="Look at so many candidates instead: same seed, same result.")] = 0,
    seed: Annotated[int, Option(help="Of the search, or of the check's traffic.")] = 1,
    begin: Annotated[
        str, Option("--start", help="Profile to begin from, its name ending in tp and a number of GPUs.")
    ] = "gpt-oss-120b-h100-tp4",
    model: Annotated[str | None, Option(help="With --url. [default: the first that is listed]")] = None,
    api_key: Annotated[str, Option(envvar="BATON_API_KEY", help="With --url, if the gateway asks for one.")] = "",
    longest: Annotated[int, Option(min=256, help="With --url: the longest prompt that is tried, tokens.")] = 8192,
    batch: Annotated[int, Option(min=2, help="With --url: the most streams at once.")] = 16,
    repeats: Annotated[int, Option(min=2, help="With --url: how often a probe is made.")] = 5,
    check: Annotated[bool, Option("--check", help="With --url: play mixed traffic, and compare.")] = False,
    workload: Annotated[str | None, Option(help="For the check, as of `baton replay`.")] = None,
    busy: Annotated[float, Option(min=0, help="For the check: about so many requests under way; 0: as it says.")] = 4.0,
    policy: Annotated[str | None, Option(help="For the check. [default: what the gateway says]")] = None,
    picture: Annotated[Path | None, Option("--plot", help="Write a plot of the check there (.png or .svg).")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit engine profiles to measurements, and show how far the model is from each of them.

    From a table: every third run is held out, and its errors tell what the model is worth elsewhere. Size of chunks, KV
    bytes a token and the link within a host are taken from the profile that the search begins with.

    From a URL: short probes of prompts that nobody has sent before measure prefill, decode steps, both in one step and,
    through a gateway, the transfer of KV. Nothing else should be under way. Ctrl-C ends either with the best so far.
    """
    if (table is None) == (url is None):
        typer.secho("baton load fit: give --table FILE or --url URL, one of them", fg="red", err=True)
        raise typer.Exit(2)
    if url is not None:
        checked = check or picture is not None
        asked = Asked(url, model, api_key, workload, busy, policy, seed)
        _live(asked, begin, out, picture, checked, as_json, longest=longest, batch=batch, repeats=repeats)
        return
    assert table is not None
    if check or picture is not None:
        typer.secho("baton load fit: --check and --plot need engines that run: give --url", fg="red", err=True)
        raise typer.Exit(2)
    try:
        base, gpus = _base(begin)
        found = read(table)
        rows = [replace(row, earlier=()) for row in found.rows] if fresh else found.rows
        runs = kinds(rows)
        held = held_out(row for row, kind in runs.items() if kind.fitted)
        if not [row for row, kind in runs.items() if kind.fitted and row not in held]:
            raise BadTable(f"{table}: none of its runs can be fitted to: all have unlike sizes, or decodes that stall")
    except (BadTable, UnknownProfile) as error:
        typer.secho(f"baton load fit: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    values = start(base, gpus, rows)
    before = report.summaries(report.points(runs, held, values, base))
    values = _search(runs, held, base, values, seconds, tries, seed)
    points = report.points(runs, held, values, base)
    unexplained = [*doubts(runs, base.chunk_tokens), *(f"left out: {line}" for line in found.left_out)]
    made = _made(values, base, points, table.name)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for size, profile in made.items():
            (out / f"tp{size}.toml").write_text(toml(profile))
    if as_json:
        result = report.as_json(points, before, unexplained)
        result |= {"profiles": {f"tp{size}": asdict(p) for size, p in made.items()}, "gbps": speeds(values)}
        typer.echo(json.dumps(result))
        return
    console = Console()
    for sheet in report.sheets(points, before):
        console.print(sheet)
    for name, value in values.items():
        typer.echo(f"{name:16} {value:.3g}")
    for line in unexplained:
        typer.echo(f"- {line}")


def _live(
    asked: Asked, begin: str, out: Path | None, picture: Path | None, check: bool, as_json: bool, **sizes: int
) -> None:
    """The same from engines that run."""
    needs("fit", "numpy", *(["matplotlib"] if picture else []))
    has_folders("fit", picture)
    if out is not None and out.suffix != ".toml":
        typer.secho(f"baton load fit: --out {out}: with --url give a file that ends in .toml", fg="red", err=True)
        raise typer.Exit(2)
    solved, verdict = reported("fit", lambda: fit_live(asked, load(begin), check=check, **sizes))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(toml(solved.profile))
    if picture is not None and verdict is not None:
        draw(verdict, picture)
    if as_json:
        errors = [asdict(error) for error in solved.errors]
        found = {"profile": asdict(solved.profile), "errors": errors, "notes": list(solved.notes)}
        typer.echo(json.dumps(found | ({"check": verdict.as_json()} if verdict is not None else {})))
    else:
        show_solved(solved)
        if verdict is not None:
            show_verdict(verdict)
    if verdict is not None and not verdict.met:
        raise typer.Exit(1)


def _base(name: str) -> tuple[Profile, int]:
    gpus = re.search(r"tp(\d+)$", Path(name).name.removesuffix(".toml"))
    if gpus is None or int(gpus[1]) == 0:
        raise UnknownProfile(f"--start {name}: its name does not end in tp and the number of its GPUs")
    return load(name), int(gpus[1])


def _search(
    runs: dict[Row, Kind], held: set[Row], base: Profile, values: Values, seconds: float, tries: int, seed: int
) -> Values:
    """The best coefficients, rounded to what they are worth; Ctrl-C ends the search early."""
    engines = [row for row, kind in runs.items() if kind.fitted and row not in held]
    slow = {row.setup.network for row, kind in runs.items() if kind is Kind.SLOW}
    plans = [(engines, [name for name in values if name.removesuffix(".gbps") not in slow], 1.0)]
    if slow:
        rows = [row for row, kind in runs.items() if kind is Kind.SLOW]
        plans = [(engines, plans[0][1], 1 - _NETWORKS), (rows, [f"{name}.gbps" for name in slow], _NETWORKS)]
    try:
        with bar() as progress:
            task = progress.add_task("looking", total=tries or seconds)
            done = 0.0
            for rows, names, share in plans:
                search = Search(rows, base, values, names, seed)
                begun_s = time.monotonic()

                def more(
                    search: Search = search, begun_s: float = begun_s, share: float = share, done: float = done
                ) -> bool:
                    spent = search.tries if tries else time.monotonic() - begun_s
                    progress.update(task, completed=done + spent, description=f"error {search.loss:.4f}")
                    return spent < share * (tries or seconds)

                try:
                    search.run(more)
                finally:
                    values = search.values
                done += share * (tries or seconds)
    except KeyboardInterrupt:
        typer.echo("stopped; the best until then:", err=True)
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if math.isfinite(value) else value


def _made(values: Values, base: Profile, points: list[report.Point], name: str) -> dict[int, Profile]:
    """The profiles, with errors over the runs of engines of that size."""
    made = {}
    for size, profile in profiles(values, base).items():
        own = [point for point in points if size in point.row.setup.sizes]
        whole = [part for part in report.summaries(own) if part.of in ("fitted", "held out")]
        errors = "; ".join(map(report.said, whole)) or "no run to fit"
        made[size] = replace(profile, source=f"fitted to {name}, TP{size}; median errors {errors}")
    return made
