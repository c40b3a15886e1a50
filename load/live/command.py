"""`baton load fit --url` and `baton load check`: a profile from an engine that runs, and whether it foretells truly."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import tomli_w
import typer
from msgspec.structs import asdict, fields, replace
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Option

from engines.model.profile import Profile, UnknownProfile, load
from load.bar import bar as progress_bar
from load.client import RequestFailed
from load.live.asker import WireAsker
from load.live.check import JUDGED, WITHIN, Verdict, busy, compare, traffic, usual
from load.live.picture import draw
from load.live.play import Player
from load.live.probe import Prober
from load.live.prompts import BadTokenizer, Ids, Prompts
from load.live.solve import Solved, solve
from load.live.target import Salt, Target, Unreachable
from load.replay.trace import BadTrace
from load.replay.workload import BadWorkload
from policies.registry import UnknownPolicy, create

TIMEOUT_S = 300.0
WRONG = (BadTokenizer, BadTrace, BadWorkload, UnknownProfile, UnknownPolicy)
"""What was written wrongly on the command line."""
_COLLOCATED = "least_loaded"
"""What a single engine behind its own URL is replayed with; it has no choice."""


class Asked(NamedTuple):
    """What the command line said of a target and of the traffic for a check."""

    url: str
    model: str | None
    api_key: str
    workload: str | None
    busy: float
    policy: str | None
    seed: int


@contextlib.asynccontextmanager
async def client(api_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """For control traffic, and for probes."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT_S, trust_env=False, limits=limits) as http:
        yield http


def fit_live(
    asked: Asked, start: Profile, *, longest: int, batch: int, repeats: int, check: bool
) -> tuple[Solved, Verdict | None]:
    """Probe a target, and check the profile if wished. Raises `Unreachable`, `RequestFailed`, `BadWorkload`."""

    async def work() -> tuple[Solved, Verdict | None]:
        async with client(asked.api_key) as http:
            target = await Target.find(http, asked.url, asked.model)
            prober = Prober(http, target, longest=longest, batch=batch, repeats=repeats, salt=Salt())
            broken_off = False
            with bar("probing", 1.0) as told:
                try:
                    await prober.run(lambda name, share: told(share, name))
                except asyncio.CancelledError:
                    broken_off = True
            try:
                solved = solve(prober.seen, start, target.kv_tokens)
            except ValueError as error:
                raise Unreachable(f"{asked.url}: {error}") from None
            solved = replace(solved, profile=replace(solved.profile, source=_source(target, solved)))
            if broken_off:
                typer.echo("stopped; the profile of what was seen until then:", err=True)
                return solved, None
            return solved, await _check(http, target, solved.profile, asked) if check else None

    return asyncio.run(work())


def _source(target: Target, solved: Solved) -> str:
    each = ", ".join(f"{error.of} {error.median:.0%}" for error in solved.errors)
    count = sum(error.probes for error in solved.errors)
    what = "gateway" if target.gateway else "engine"
    return f"{count} probes of a running {what} with {target.model}; median errors: {each}"


async def _check(http: httpx.AsyncClient, target: Target, profile: Profile, asked: Asked) -> Verdict:
    policy = asked.policy or target.policy or _COLLOCATED
    text = asked.workload or usual(target)
    asks = traffic(text, target, asked.seed)
    if asked.busy:
        asks = busy(asks, asked.busy, target, profile, policy)
    salt = secrets.token_hex(4)
    headers = {"authorization": f"Bearer {asked.api_key}"} if asked.api_key else {}
    asker = WireAsker(target.url, target.model, headers, TIMEOUT_S)
    player = Player(asker, asks, Prompts(asks, target.block_tokens, salt, Ids()), salt)
    with bar(f"playing {len(asks)} requests", len(asks)) as told:
        try:
            await player.run(lambda ended: told(ended, f"playing {len(asks)} requests"))
        except asyncio.CancelledError:
            typer.echo("stopped; what had ended until then:", err=True)
        finally:
            asker.close()
    for line in list(dict.fromkeys(player.failed))[:3]:
        typer.secho(f"baton load check: {line}", fg="red", err=True)
    if not player.played:
        raise Unreachable(f"{target.url}: no request had ended")
    return compare(asks, player.played, len(player.failed), target, profile, policy, text)


@contextlib.contextmanager
def bar(name: str, total: float) -> Any:
    """A progress bar; yields what tells it how much is done, and what is."""
    with progress_bar() as progress:
        task = progress.add_task(name, total=total)

        def told(done: float, what: str) -> None:
            progress.update(task, completed=done, description=what)

        yield told


def needs(command: str, *modules: str) -> None:
    """Exit with the mend if one of these is not installed."""
    for module in modules:
        if find_spec(module) is None:
            typer.secho(
                f"baton load {command}: {module} is missing: pip install 'baton-gateway[load]'", fg="red", err=True
            )
            raise typer.Exit(1)


def has_folders(command: str, *files: Path | None) -> None:
    """Exit if one of these cannot be written in the end."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            typer.secho(f"baton load {command}: {file}: there is no folder {file.parent}", fg="red", err=True)
            raise typer.Exit(2)


def reported(command: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; its known failures end the command in a sentence."""
    try:
        return work()
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
    except (Unreachable, RequestFailed, *WRONG) as error:
        typer.secho(f"baton load {command}: {error}", fg="red", err=True)
        raise typer.Exit(2 if isinstance(error, WRONG) else 1) from None


def toml(profile: Profile) -> str:
    """As a file of `engines/model/profiles`; what is at its default is left out."""
    return tomli_w.dumps(
        {field.name: value for field in fields(Profile) if (value := getattr(profile, field.name)) != field.default}
    )


def show_solved(solved: Solved) -> None:
    """The profile's errors and numbers, and what should be known."""
    table = Table(title="Probes against the profile: absolute errors", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("probes", no_wrap=True)
    for head in ("count", "median", "p90"):
        table.add_column(head, justify="right")
    for error in solved.errors:
        table.add_row(error.of, str(error.probes), f"{error.median:.1%}", f"{error.p90:.1%}")
    Console().print(table)
    for name, value in asdict(solved.profile).items():
        if value and name != "source":
            typer.echo(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
    for note in solved.notes:
        typer.echo(f"- {note}")


def show_verdict(verdict: Verdict) -> None:
    """Measured and foretold, side by side."""
    measured, foretold, errors = verdict.measured.side, verdict.foretold.side, verdict.errors
    table = Table(
        title=f"{verdict.workload}: {measured.requests} requests, policy {verdict.policy}; ms",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for head in ("measured", "foretold", "error", "judged"):
        table.add_column(head, justify="right")
    for name, error in errors.items():
        figure, point = name.split(".")
        values = (getattr(getattr(side, figure), point) for side in (measured, foretold))
        label = f"{figure.removesuffix('_ms').upper()} {point}"
        mark = ("yes" if abs(error) <= WITHIN else "MISSED") if name in JUDGED else ""
        table.add_row(label, *(f"{value:.1f}" for value in values), f"{error:+.1%}", mark)
    for label, ours, theirs in (
        ("cached", measured.cached, foretold.cached),
        ("one engine alone", measured.local, foretold.local),
    ):
        table.add_row(label, f"{ours:.1%}", f"{theirs:.1%}", "", "")
    Console().print(table)
    typer.echo(f"{'Within' if verdict.met else 'NOT within'} {WITHIN:.0%} of what was measured.")
    if verdict.failed:
        typer.secho(f"{verdict.failed} requests failed", fg="red", err=True)


def check(
    url: Annotated[str, Option(help="A gateway, or one engine.")],
    profile: Annotated[str, Option(help="What is to be checked: a profile's name, or a .toml file.")],
    workload: Annotated[str | None, Option(help="As of `baton replay`. [default: mixed, of fitting lengths]")] = None,
    busy: Annotated[
        float, Option(min=0, help="Faster or slower so that about so many are under way; 0: as the workload says.")
    ] = 0.0,
    policy: Annotated[str | None, Option(help="To replay with. [default: what the gateway says]")] = None,
    model: Annotated[str | None, Option(help="[default: the first that is listed]")] = None,
    api_key: Annotated[str, Option(envvar="BATON_API_KEY", help="If the gateway asks for one.")] = "",
    seed: Annotated[int, Option(help="Of the traffic.")] = 1,
    picture: Annotated[Path | None, Option("--plot", help="Write a plot there (.png or .svg).")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play a workload to engines that run, replay it in virtual time, and compare.

    The fleet that is replayed is the one that the gateway shows. Exits with 1 if a judged figure is off by more than
    20 %, or a request failed.
    """
    needs("check", "numpy", *(["matplotlib"] if picture else []))
    has_folders("check", picture)
    asked = Asked(url, model, api_key, workload, busy, policy, seed)

    async def work(known: Profile) -> Verdict:
        async with client(asked.api_key) as http:
            target = await Target.find(http, asked.url, asked.model)
            return await _check(http, target, known, asked)

    def run() -> Verdict:
        known = load(profile)
        if policy:
            create(policy)
        return asyncio.run(work(known))

    verdict = reported("check", run)
    if picture is not None:
        draw(verdict, picture)
    if as_json:
        typer.echo(json.dumps(verdict.as_json()))
    else:
        show_verdict(verdict)
    raise typer.Exit(0 if verdict.met else 1)
