"""`baton chaos`: the storm, for an operator."""

import asyncio
import json
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from typer import Option

from load.bar import bar
from load.chaos.fleet import CannotStart
from load.chaos.plan import Plan, Scenario, carry_out
from load.chaos.report import facts, show
from load.chaos.run import Report
from load.chaos.tally import Tally


def chaos(
    scenario: Annotated[
        Scenario,
        Option(help="storm: everything. kill-prefill, kill-decode: the first engine is killed and stays away."),
    ] = "storm",
    seed: Annotated[int, Option(help="The same seed: the same requests, and the same blows between them.")] = 1,
    requests: Annotated[int, Option(min=10, help="Requests to send.")] = 10_000,
    rate: Annotated[float, Option(min=1, help="Requests a second.")] = 60.0,
    every_s: Annotated[float, Option(min=0.1, help="Something happens this often.")] = 2.0,
    gateways: Annotated[int, Option(min=1, help="Gateways; clients go to another one when theirs is down.")] = 2,
    prefill: Annotated[int, Option(min=1, help="Prefill engines.")] = 4,
    decode: Annotated[int, Option(min=1, help="Decode engines.")] = 4,
    gateway_command: Annotated[
        str, Option(help="Start another gateway to compare with: a command with {port} {p0} {p1} .. {d0} {d1} ..")
    ] = "",
    keep: Annotated[Path | None, Option(help="Keep the logs of all processes in this folder.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove that nothing is wrong, lost, doubled or hung when everything fails.

    Starts a throw-away fleet on this machine (engine doubles, gateways, Valkey; no GPU), sends requests whose right
    answers are known token by token, and meanwhile kills, hangs, slows, cuts and restarts engines, gateways and Valkey.
    Then all are healed, and it looks for what is left: bookings, running requests, leases, memory, a wrong index.

    Exits with 1 if a token was wrong, lost or doubled, a request hung, something leaked, or more than 0.1 % of the
    requests ended with an error. Settings of the gateways can be tried as BATON_NAME in the environment.
    """
    plan = Plan(scenario, seed, requests, rate, every_s, gateways, prefill, decode, gateway_command)
    try:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--keep {keep}: {error.strerror}: choose a folder that can be written") from None
    try:
        with tempfile.TemporaryDirectory(prefix="baton-") as folder:
            report = asyncio.run(_watched(plan, keep or Path(folder)))
    except CannotStart as error:
        typer.secho(f"baton chaos: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    good = report.tally.good(plan.errors) and not report.trouble
    if as_json:
        typer.echo(json.dumps(facts(plan, report, good)))
    else:
        show(Console(), plan, report, good)
    raise typer.Exit(130 if report.stopped else 0 if good else 1)


async def _watched(plan: Plan, folder: Path) -> Report:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[bad]}"),
    )
    with bar(*columns) as progress:
        task = progress.add_task("starting the fleet", total=plan.requests, bad="")

        def shown(tally: Tally, what: str) -> None:
            bad = f"{tally.failed} failed" if tally.failed else ""
            progress.update(task, completed=tally.requests, description=what, bad=bad)

        return await carry_out(plan, folder, shown, stop)
