"""`baton index`: what the prefix index of a running gateway holds. Hashes and sizes; no text."""

import json
from typing import Annotated, Any

import httpx
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Option

from engines import sheet

app = typer.Typer(help="Look into a gateway's prefix index.", no_args_is_help=True, rich_markup_mode=None)

Gateway = Annotated[str, Option("--gateway", "--url", help="URL of a gateway on this machine.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
_COUNTS = ("blocks", "orphans", "gaps", "resyncs", "restarts")
_DEFAULT = "http://127.0.0.1:8000"


@app.command()
def stats(gateway: Gateway = _DEFAULT, as_json: AsJson = False) -> None:
    """How large the index is, who holds how much of it, and how each engine's events stand."""
    found = _ask(gateway, 0)
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = Console()
    if not found:
        typer.echo(f"no engine is in the index yet: {gateway}/readyz?verbose says why")
    for model, one in found.items():
        sizes = one["stats"]
        console.print(
            f"{model}: {sizes['blocks']:,} blocks of {one['block_size']} tokens in {sizes['nodes']:,} runs, "
            f"{sizes['pairs']:,} resident; prompts are read: {one['prompts']}"
        )
        table = sheet.sheet(["engine", "events"], [*_COUNTS, "lag"])
        for source in one["sources"]:
            counts = [f"{source[name]:,}" for name in _COUNTS]
            table.add_row(source["engine"], source["state"], *counts, f"{source['lag_s'] * 1e3:.0f} ms")
        sheet.show(table, console)
        slower = {holder: blocks for holder, blocks in sizes["holders"].items() if holder.endswith(")")}
        if slower:
            held = ", ".join(f"{holder}: {blocks:,} blocks" for holder, blocks in slower.items())
            console.print(f"among them on slower tiers: {held}")
        for source in one["sources"]:
            if source["why"]:
                console.print(source["why"], style="yellow")


@app.command()
def top(
    gateway: Gateway = _DEFAULT,
    count: Annotated[int, Option("--count", "-n", min=1, help="Runs to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The prefixes that take the most room: runs of blocks, by blocks held over all engines."""
    found = _ask(gateway, count)
    if as_json:
        typer.echo(json.dumps({model: one["runs"] for model, one in found.items()}))
        return
    for model, one in found.items():
        table = Table("first block", "blocks", "held by", title=model, title_justify="left", box=box.SIMPLE_HEAD)
        for run in one["runs"]:
            held = ", ".join(f"{holder}: {blocks}" for holder, blocks in run["holders"].items())
            table.add_row(run["head"], str(run["blocks"]), held)
        Console().print(table)


@app.command()
def dump(gateway: Gateway = _DEFAULT) -> None:
    """Every run of blocks with its holders, one JSON object a line."""
    for model, one in _ask(gateway, -1).items():
        for run in one["runs"]:
            typer.echo(json.dumps({"model": model, **run}))


def _ask(gateway: str, count: int) -> dict[str, Any]:
    try:
        answer = httpx.get(f"{gateway}/index", params={"top": count}, timeout=60, trust_env=False)
        found: dict[str, Any] = answer.json()
        if not answer.is_success and "error" not in found:
            answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        typer.secho(f"baton index: {gateway}: {error}: is a gateway running there?", fg="red", err=True)
        raise typer.Exit(1) from None
    if not answer.is_success:
        typer.secho(f"baton index: {gateway}: {found['error']['message']}", fg="red", err=True)
        raise typer.Exit(1)
    return found
