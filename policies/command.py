"""`baton policies`: which there are, whether one is good, and a new one to start from."""

import json
import keyword
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from policies import sample
from policies.check import Report, examine
from policies.registry import UnknownPolicy, create, deciders, names, where

BUDGET_US = 5000.0
"""The gateway's default `policy_budget_ms`; slower decisions are marked."""

app = typer.Typer(help="List, check and write routing policies.", no_args_is_help=True, rich_markup_mode=None)

AsJson = Annotated[bool, Option("--json", help="Print JSON.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The installed policies: name, where from, what they do; and the deciders that may follow them."""
    rows = [(name, *_origin(name)) for name in names()]
    if as_json:
        typer.echo(json.dumps([{"name": name, "from": source, "what": what} for name, source, what in rows]))
        return
    table = Table("policy", "from", "what it does", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    table = Table("decider", "what it does", box=box.SIMPLE_HEAD)
    for name, summary in deciders():
        table.add_row(f"+{name}", summary)
    Console().print(table)
    typer.echo("A policy that chooses one engine after the other takes a decider: kv_cost+suffix_length:2048 (tokens).")


@app.command()
def check(
    name: Annotated[str, Argument(help="Installed name, module:Class, or the path of a .py file.")],
    as_json: AsJson = False,
) -> None:
    """Examine a policy: valid placements, decision times, determinism. Ends with 1 if anything is wrong."""
    try:
        origin = where(name)
        report = examine(partial(create, name))
    except UnknownPolicy as error:
        _fail(str(error))
    if as_json:
        said = {"policy": name, "from": origin.source, "good": report.good, **msgspec.to_builtins(report)}
        typer.echo(json.dumps(said))
    else:
        _show(name, origin.source, report)
    if not report.good:
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[str, Argument(help="The policy's name: lower case words, joined by underscores.")],
    folder: Annotated[Path, Option(help="Where to write NAME.py and test_NAME.py.")] = Path(),
) -> None:
    """Write a policy to start from, and its test."""
    if not name.isidentifier() or name != name.lower() or not name.isascii() or keyword.iskeyword(name):
        _fail(f"{name!r} is no name for a policy: use lower case letters, digits and underscores, as in my_policy")
    if name in names():
        _fail(f"{name!r} is the name of an installed policy: choose another")
    if name.startswith(("_", "test_")):
        _fail(f"{name!r}: the gateway passes over files that begin with _ or test_: choose another")
    written = {folder / file: text for file, text in sample.files(name).items()}
    for path in written:
        if path.exists():
            _fail(f"{path} exists: remove it, or choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in written.items():
            path.write_text(text)
    except OSError as error:
        _fail(f"{folder}: {error.strerror}: choose a folder that can be written with --folder")
    for path in written:
        typer.echo(f"wrote {path}")
    first, second = written
    typer.echo(f"next: pytest {second}; baton policies check {first}")


def _origin(name: str) -> tuple[str, str]:
    try:
        origin = where(name)
    except UnknownPolicy as error:  # another package's, and broken: the list is shown all the same
        return "?", str(error)
    return origin.source, origin.summary


def _show(name: str, source: str, report: Report) -> None:
    console = Console(highlight=False)
    console.print(f"{name} ({source})", markup=False)
    table = Table("case", "", box=box.SIMPLE_HEAD)
    for result in report.results:
        table.add_row(result.case, result.error or "ok", style="red" if result.error else None)
    console.print(table)
    table = Table("engines", "median µs", "p99 µs", "worst µs", "", box=box.SIMPLE_HEAD)
    for times in report.times:
        slow = "over the budget of 5 ms" if times.p99_us > BUDGET_US else ""
        figures = (f"{value:,.0f}" for value in (times.median_us, times.p99_us, times.worst_us))
        table.add_row(str(times.engines), *figures, slow, style="yellow" if slow else None)
    console.print(table)
    words = {True: "two instances decide alike", False: "two instances decide differently", None: "not known"}
    seed = "takes a seed" if report.seeded else "takes no seed"
    console.print(f"determinism: {words[report.deterministic]} ({seed})")
    if report.good:
        console.print("good", style="green")
    else:
        console.print(f"{len(report.errors)} of {len(report.results)} cases failed", style="red")


def _fail(message: str) -> NoReturn:
    typer.secho(f"baton policies: {message}", fg="red", err=True)
    raise typer.Exit(2)
