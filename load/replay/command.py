"""`baton replay`: policies on recorded or generated traffic, in virtual time."""

import json
import re
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TextIO

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer import Option

from engines.fleet import FleetError
from engines.model.profile import UnknownProfile
from engines.model.profile import load as load_profile
from load.replay.fleet import BadFleet, from_file, shape
from load.replay.outcome import Outcome, ideal_hits, outcome
from load.replay.plot import plot
from load.replay.saturate import LEAST_S, Limit, limit
from load.replay.simulate import TPOT_SLO_S, TTFT_SLO_S, Knowledge, Simulation, Slow
from load.replay.trace import Ask, BadTrace, faster, read
from load.replay.trace import copies as several
from load.replay.workload import WORKLOADS, BadWorkload, generate
from policies.registry import UnknownPolicy, create

PROFILE = "gpt-oss-120b-h100-tp4"


def replay(
    trace: Annotated[Path | None, Option(help="Mooncake's JSON lines, or Azure's CSV.")] = None,
    workload: Annotated[
        str | None, Option(help=f"Generated instead: NAME[:key=value,...]; {', '.join(WORKLOADS)}.")
    ] = None,
    fleet: Annotated[str, Option(help="A shape (4P4D, 6P2D, 8C), several with commas, or a fleet file.")] = "4P4D",
    policy: Annotated[str, Option(help="Names with commas; NAME+DECIDER[:TOKENS] too.")] = "joint,kv_cost,round_robin",
    profile: Annotated[str, Option(help="How fast engines are: a name, or a .toml file.")] = PROFILE,
    kv_blocks: Annotated[int, Option(min=1, help="KV blocks of an engine.")] = 2048,
    block_tokens: Annotated[int, Option(min=1, help="Tokens of a block.")] = 512,
    speed: Annotated[str, Option(help="Arrivals so many times faster: x2, or several with commas.")] = "x1",
    gateways: Annotated[int, Option(min=1, help="How many place requests, in turn.")] = 1,
    private: Annotated[bool, Option("--private/--shared", help="Each gateway knows its own load only.")] = False,
    event_delay_ms: Annotated[float, Option(min=0, help="KV events arrive so late.")] = 0.0,
    learned: Annotated[bool, Option("--learned", help="Speeds are fitted on the way, as a gateway does.")] = False,
    slow: Annotated[list[str] | None, Option(help="NAME=FACTOR@FROM-TO: an engine is slow then, seconds.")] = None,
    hosts: Annotated[int, Option(min=1, help="Engines of a shape are dealt out over so many hosts.")] = 1,
    slow_gbps: Annotated[float | None, Option(min=0.001, help="Link between two hosts.")] = None,
    bears: Annotated[
        float | None, Option(min=0.01, max=1, help="Instead: the load of which this share is served in time.")
    ] = None,
    requests: Annotated[int | None, Option(min=1, help="Only the first so many.")] = None,
    copies: Annotated[int, Option(min=1, help="The traffic so many times at once, for larger fleets.")] = 1,
    seed: Annotated[int, Option(help="Of policies and generated traffic.")] = 1,
    out: Annotated[Path | None, Option("--json", help="Write the figures there; - for standard output.")] = None,
    picture: Annotated[Path | None, Option("--plot", help="Write a plot there (.png or .svg).")] = None,
) -> None:
    """Run policies on a simulated fleet: the very code of production, in virtual time.

    Every policy meets the same traffic. Read TTFT and the pauses between tokens (ITL, TPOT) together: a policy can buy
    one with the other.
    """
    try:
        kind = load_profile(profile)
        asks = _traffic(trace, workload, block_tokens, seed)[:requests]
        asks = [ask if ask.after < len(asks) else msgspec.structs.replace(ask, after=-1) for ask in asks]
        asks = several(asks, copies)
        runs = [
            (name, size, times) for size in fleet.split(",") for times in _speeds(speed) for name in policy.split(",")
        ]
        shapes = {
            size: from_file(Path(size), kind) if size.endswith(".toml") else shape(size, kind, hosts, slow_gbps)
            for size in fleet.split(",")
        }
        faults = [_fault(text) for text in slow or ()]
        for fault in faults:
            if any(fault.engine not in {m.name for m in one.members} for one in shapes.values()):
                raise typer.BadParameter(f"--slow: no engine {fault.engine} in the fleet")
        for name in policy.split(","):
            create(name)
    except (BadTrace, BadWorkload, BadFleet, FleetError, UnknownProfile, UnknownPolicy, typer.BadParameter) as error:
        typer.secho(f"baton replay: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    for needed in ("numpy", "matplotlib") if picture is not None else ("numpy",):
        if find_spec(needed) is None:
            typer.secho(f"baton replay: {needed} is missing: pip install 'baton-gateway[load]'", fg="red", err=True)
            raise typer.Exit(1)
    knowledge = Knowledge(gateways, private, event_delay_ms / 1e3, learned)
    highest = max(1.0, max(ask.at_s for ask in asks) / LEAST_S)
    found: dict[tuple[str, str, float], Outcome] = {}
    limits: dict[tuple[str, str], Limit] = {}
    stopped = False
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(asks))

        def once(name: str, size: str, times: float) -> Outcome:
            progress.reset(task, description=f"{name} on {size}, x{times:.3g}", total=len(asks))
            simulation = Simulation(
                faster(asks, times),
                shapes[size],
                create(name, seed),
                kv_blocks=kv_blocks,
                block_tokens=block_tokens,
                knowledge=knowledge,
                faults=faults,
                progress=lambda ended: progress.update(task, completed=ended),
            )
            try:
                simulation.run()
            except KeyboardInterrupt:
                nonlocal stopped
                stopped = True
                found[name, size, times] = outcome(simulation)
                raise
            return outcome(simulation)

        try:
            for name, size, times in runs:
                if bears is None:
                    found[name, size, times] = once(name, size, times)
                elif (name, size) not in limits:
                    count = len(shapes[size].members)
                    limits[name, size] = limit(partial(once, name, size), bears, count, highest)
        except KeyboardInterrupt:
            stopped = True
    if bears is not None:
        _show_limits(limits, bears)
        if out is not None and str(out) != "-":
            out.write_text(
                json.dumps([{"policy": n, "fleet": f, **msgspec.to_builtins(v)} for (n, f), v in limits.items()])
            )
        raise typer.Exit(130 if stopped else 0)
    ideal = ideal_hits(asks, block_tokens)
    _show(found, ideal, sys.stderr if str(out) == "-" else sys.stdout)
    if stopped:
        typer.echo("stopped; what was replayed until then is shown", err=True)
    if out is not None:
        text = json.dumps(_figures(found, ideal), indent=1)
        if str(out) == "-":
            typer.echo(text)
        else:
            out.write_text(text + "\n")
    if picture is not None:
        plot({_label(key, found): one for key, one in found.items()}, picture)
    if stopped:
        raise typer.Exit(130)


def _traffic(trace: Path | None, workload: str | None, block_tokens: int, seed: int) -> list[Ask]:
    if (trace is None) == (workload is None):
        raise typer.BadParameter("give --trace FILE or --workload NAME, one of them")
    if trace is not None:
        return read(trace, block_tokens)
    return generate(workload or "", block_tokens, seed)


def _speeds(text: str) -> list[float]:
    try:
        speeds = [float(part.strip().lstrip("x")) for part in text.split(",")]
    except ValueError:
        speeds = []
    if not speeds or min(speeds) <= 0:
        raise typer.BadParameter(f"--speed {text!r}: write x2, or several such as x2,x5")
    return speeds


def _fault(text: str) -> Slow:
    found = re.fullmatch(r"([^=]+)=([\d.]+)@([\d.]+)-([\d.]+)", text)
    if found is None:
        raise typer.BadParameter(f"--slow {text!r}: write NAME=FACTOR@FROM-TO, such as p0=5@60-120")
    return Slow(found[1], *(float(part) for part in found.groups()[1:]))


def _show_limits(limits: dict[tuple[str, str], Limit], share: float) -> None:
    """Fleets and policies by what they can bear, the cheapest first."""
    table = Table(
        title=f"The highest load of which {share:.0%} is served in time (TTFT <= {TTFT_SLO_S:g} s, "
        f"TPOT <= {1e3 * TPOT_SLO_S:g} ms), cheapest first",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("fleet", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for head in ("speed", "req/s", "an engine", "TTFT", "ITL p99", "hit"):
        table.add_column(head, justify="right", no_wrap=True)
    for (name, size), one in sorted(limits.items(), key=lambda item: -item[1].per_engine):
        if one.outcome is None:
            table.add_row(size, name, "none")
            continue
        table.add_row(
            size,
            name,
            f"{'> ' if one.more else ''}x{one.speed:.2f}",
            f"{one.requests_per_s:.1f}",
            f"{one.per_engine:.2f}",
            f"{one.outcome.ttft_ms.mean:.0f}",
            f"{one.outcome.itl_ms.p99:.0f}",
            f"{one.outcome.hit_rate:.1%}",
        )
    Console().print(table)
    if any(one.more for one in limits.values()):
        typer.echo(f"> : more cannot be told from this traffic, which would all arrive within {LEAST_S:g} s", err=True)


def _label(key: tuple[str, str, float], found: dict[tuple[str, str, float], Outcome]) -> str:
    """A run's name, as long as is needed to tell it from the others."""
    name, size, times = key
    label = name
    if len({other for _, other, _ in found}) > 1:
        label += f" {size}"
    if len({other for _, _, other in found}) > 1:
        label += f" x{times:g}"
    return label


def _figures(found: dict[tuple[str, str, float], Outcome], ideal: float) -> dict[str, object]:
    return {
        "ideal_hit_rate": ideal,
        "policies": {_label(key, found): msgspec.to_builtins(one) for key, one in found.items()},
    }


def _show(found: dict[tuple[str, str, float], Outcome], ideal: float, to: TextIO) -> None:
    table = Table(
        title=f"Replay: times in ms; an infinite shared cache would hit {ideal:.1%} of the prompts' tokens",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    for head in ("TTFT", "p99", "TPOT p99", "ITL p99", "SLO", "hit", "local", "refused"):
        table.add_column(head, justify="right", no_wrap=True)
    for key, one in found.items():
        table.add_row(
            _label(key, found),
            f"{one.ttft_ms.mean:.0f}",
            f"{one.ttft_ms.p99:.0f}",
            f"{one.tpot_ms.p99:.1f}",
            f"{one.itl_ms.p99:.1f}",
            f"{one.slo_met:.1%}",
            f"{one.hit_rate:.1%}",
            f"{one.local_share:.0%}",
            str(one.refused),
        )
    Console(file=to).print(table)
