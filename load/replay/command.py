"""`baton replay`: policies on recorded or generated traffic, in virtual time."""

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from engines.fleet import FleetError
from engines.model.profile import Profile, UnknownProfile
from engines.model.profile import load as load_profile
from load.bar import bar
from load.replay import report
from load.replay.fleet import BadFleet, fleets
from load.replay.ideal import ideal
from load.replay.knowledge import Knowledge
from load.replay.outcome import Outcome, outcome
from load.replay.plot import plot
from load.replay.report import Key
from load.replay.saturate import LEAST_S, Limit, limit
from load.replay.simulate import Simulation, Slow, TooMany
from load.replay.trace import Ask, BadTrace, faster, first, opened, read
from load.replay.trace import copies as several
from load.replay.workload import WORKLOADS, BadWorkload, generate
from load.slo import Slo
from policies.registry import UnknownPolicy, create

PROFILE = "gpt-oss-120b-h100-tp4"
KV_BLOCKS = 2048
"""Of an engine whose profile does not say."""


def replay(
    trace: Annotated[Path | None, Option(help="Mooncake's JSON lines, or Azure's CSV.")] = None,
    workload: Annotated[
        str | None, Option(help=f"Generated instead: NAME[:key=value,...]; {', '.join(WORKLOADS)}.")
    ] = None,
    fleet: Annotated[
        str, Option(help="4P4D, 8C, 8PD (all splits of 8), SHAPE@PROFILE or fleet files; commas.")
    ] = "4P4D",
    policy: Annotated[str, Option(help="Names with commas; NAME+DECIDER[:TOKENS] too.")] = "joint,kv_cost,round_robin",
    profile: Annotated[str, Option(help="How fast engines are: a name, or a .toml file.")] = PROFILE,
    kv_blocks: Annotated[
        str, Option(help=f"KV blocks of an engine; several with commas. [default: the profile's, or {KV_BLOCKS}]")
    ] = "",
    block_tokens: Annotated[int, Option(min=1, help="Tokens of a block.")] = 512,
    speed: Annotated[str, Option(help="Arrivals so many times faster: x2, or several with commas.")] = "x1",
    gateways: Annotated[int, Option(min=1, help="How many place requests, in turn.")] = 1,
    private: Annotated[bool, Option("--private/--shared", help="Each gateway knows its own load only.")] = False,
    event_delay_ms: Annotated[float, Option(min=0, help="KV events arrive so late.")] = 0.0,
    approximate: Annotated[bool, Option("--approximate", help="No KV events: guessed from what was placed.")] = False,
    scraped_ms: Annotated[
        float, Option(min=0, help="Load is known from metrics so far apart; with --private that of the others.")
    ] = 0.0,
    learned: Annotated[bool, Option("--learned", help="Speeds are fitted on the way, as a gateway does.")] = False,
    slow: Annotated[list[str] | None, Option(help="NAME=FACTOR@FROM-TO: an engine is slow then, seconds.")] = None,
    hosts: Annotated[int, Option(min=1, help="Engines of a shape are dealt out over so many hosts.")] = 1,
    slow_gbps: Annotated[float | None, Option(min=0.001, help="Link between two hosts.")] = None,
    ttft_slo_s: Annotated[float, Option(min=0.001, help="A first token later than this is late.")] = 2.0,
    tpot_slo_ms: Annotated[float, Option(min=0.1, help="The same for the mean pause between tokens.")] = 50.0,
    bears: Annotated[
        float | None,
        Option(min=0.01, max=1, help="Instead: the load of which this share is in time, and the cheapest fleet."),
    ] = None,
    requests: Annotated[int | None, Option(min=1, help="Only the first so many.")] = None,
    open_loop: Annotated[
        bool, Option("--open", help="Turns are sent when the trace says, answered or not the one before.")
    ] = False,
    early_hits: Annotated[
        bool, Option("--early-hits", help="Prompts are cached once sent, as some simulators have it.")
    ] = False,
    copies: Annotated[int, Option(min=1, help="The traffic so many times at once, for larger fleets.")] = 1,
    seed: Annotated[int, Option(help="Of policies and generated traffic.")] = 1,
    out: Annotated[Path | None, Option("--json", help="Write the figures there; - for standard output.")] = None,
    picture: Annotated[Path | None, Option("--plot", help="Write a plot there (.png or .svg).")] = None,
) -> None:
    """Run policies on a simulated fleet: the very code of production, in virtual time.

    Every policy meets the same traffic. Read TTFT and the pauses between tokens (ITL, TPOT) together: a policy can buy
    one with the other. Ctrl-C shows what was replayed until then.
    """
    try:
        kind = load_profile(profile)
        asks = first(_traffic(trace, workload, block_tokens, seed), requests)
        asks = several(opened(asks) if open_loop else asks, copies)
        shapes = fleets(fleet, kind, hosts, slow_gbps)
        sizes = _sizes(kv_blocks, kind, block_tokens)
        setups = {
            name + (f"/{size}" if len(sizes) > 1 else ""): (one, size) for name, one in shapes.items() for size in sizes
        }
        speeds = _speeds(speed)
        if bears is not None and len(speeds) > 1:
            raise typer.BadParameter("--bears looks for the speed by itself: give one --speed, the load to be borne")
        if picture is not None and picture.suffix not in (".png", ".svg"):
            raise typer.BadParameter(f"--plot {picture}: its name must end in .png or .svg")
        faults = [_fault(text) for text in slow or ()]
        for fault in faults:
            if any(fault.engine not in {m.name for m in one.members} for one in shapes.values()):
                raise typer.BadParameter(f"--slow: no engine {fault.engine} in the fleet")
        names = [name.strip() for name in policy.split(",") if name.strip()]
        for name in names:
            create(name)
        for path in (out, picture):
            if path is not None and not path.absolute().parent.is_dir():
                raise typer.BadParameter(f"{path}: there is no folder {path.parent}")
    except (BadTrace, BadWorkload, BadFleet, FleetError, UnknownProfile, UnknownPolicy, typer.BadParameter) as error:
        typer.secho(f"baton replay: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    for needed in ("numpy", "matplotlib") if picture is not None else ("numpy",):
        if find_spec(needed) is None:
            typer.secho(f"baton replay: {needed} is missing: pip install 'baton-gateway[load]'", fg="red", err=True)
            raise typer.Exit(1)
    knowledge = Knowledge(gateways, private, event_delay_ms / 1e3, learned, scraped_ms / 1e3, approximate)
    slo = Slo(ttft_slo_s, tpot_slo_ms / 1e3)
    highest = max(1.0, max(ask.at_s for ask in asks) / LEAST_S)
    found: dict[Key, Outcome] = {}
    limits: dict[tuple[str, str], Limit] = {}
    stopped = False
    with bar() as progress:
        task = progress.add_task("", total=len(asks))

        def once(key: Key) -> Outcome | None:
            label = f"{key.policy} on {key.fleet}, x{key.times:.3g}"
            progress.reset(task, description=label, total=len(asks))
            members, size = setups[key.fleet]
            simulation = Simulation(
                faster(asks, key.times),
                members,
                create(key.policy, seed),
                kv_blocks=size,
                block_tokens=block_tokens,
                knowledge=knowledge,
                faults=faults,
                early_hits=early_hits,
                progress=lambda ended: progress.update(task, completed=ended),
                slo=slo,
                may_miss=math.inf if bears is None else (1 - bears) * len(asks),
            )
            try:
                simulation.run()
            except TooMany:
                return None
            except KeyboardInterrupt:
                if bears is None:
                    found[key] = outcome(simulation, slo)
                raise
            return outcome(simulation, slo)

        try:
            for setup, (members, _) in setups.items():
                for name in names:
                    if bears is not None:
                        load = partial(_at, once, name, setup)
                        limits[name, setup] = limit(load, bears, members.gpus, highest)
                        continue
                    for times in speeds:
                        key = Key(name, setup, times)
                        if (one := once(key)) is not None:
                            found[key] = one
        except KeyboardInterrupt:
            stopped = True
    console = Console(file=sys.stderr if str(out) == "-" else sys.stdout)
    if bears is not None:
        report.show_limits(limits, bears, slo, speeds[0], console)
        figures = report.limits_json(limits, bears, slo, speeds[0])
    else:
        most = max((one.requests for one in found.values()), default=0)
        played = asks[:most] if stopped else asks
        ideals = {name: ideal(played, block_tokens, len(one.members) * size) for name, (one, size) in setups.items()}
        report.show(found, ideals, slo, console)
        figures = report.as_json(found, ideals, slo)
        if picture is not None and found:
            named = report.labels(found)
            plot({named[key]: one for key, one in found.items()}, picture)
    if stopped:
        typer.echo("stopped; what was replayed until then is shown", err=True)
    if out is not None:
        text = json.dumps(figures, indent=1)
        if str(out) == "-":
            typer.echo(text)
        else:
            out.write_text(text + "\n")
    if stopped:
        raise typer.Exit(130)


def _at(once: Callable[[Key], Outcome | None], name: str, setup: str, times: float) -> Outcome | None:
    return once(Key(name, setup, times))


def _sizes(text: str, profile: Profile, block_tokens: int) -> list[int]:
    """KV blocks of an engine, one run for each."""
    if not text:
        return [profile.kv_tokens // block_tokens or KV_BLOCKS]
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"--kv-blocks {text!r}: write a number, or several with commas")
    return sizes


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
