"""`baton load gateways`: several gateways against one, over HTTP, in front of engine doubles on this machine."""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from statistics import mean
from typing import Annotated

import httpx
import msgspec
import tomli_w
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer import Option

from engines.double.folder import write_folder
from engines.layout import free_ports
from engines.model.profile import UnknownProfile, load
from engines.surface import PROMPT_TOKENS_BY_SOURCE, total
from gateway.index.embedded import Embedded
from load.bar import bar
from load.chaos.fleet import CannotStart, Child
from load.client import Measured
from load.latencies import Spread, spread, weighted
from load.live.asker import WireAsker
from load.live.command import TIMEOUT_S
from load.live.play import Played, Player
from load.live.prompts import Ids, Prompts
from load.live.target import Unreachable
from load.replay.trace import Ask
from load.replay.workload import BadWorkload, generate

BLOCK = 16
MODEL = "double"
SIDES = ("one", "shared", "private")
_GENERATED = "vllm:generation_tokens_total"


class Wish(msgspec.Struct, frozen=True):
    """What is compared, and under which load."""

    gateways: int
    prefill: int
    decode: int
    workload: str
    seconds: float
    warm_s: float
    """Requests that came before do not count."""
    profile: str
    policy: str
    seed: int


class Found(msgspec.Struct, frozen=True):
    """What one side came to."""

    side: str
    requests: int
    failed: int
    hit_rate: float
    """Share of prompt tokens that the engine that prefilled had cached."""
    ttft_ms: Spread
    itl_ms: Spread
    balance: float
    """Tokens computed by the busiest engine over the mean, within a role; the worst role's."""


class Among:
    """Asks one of several URLs for each stream, by chance."""

    def __init__(self, urls: Sequence[str], model: str) -> None:
        self._doors = [WireAsker(url, model, {}, TIMEOUT_S) for url in urls]

    def body(self, prompt: str | list[int], answer: int) -> bytes:
        """A request for exactly so many tokens."""
        return self._doors[0].body(prompt, answer)

    async def ask(self, raw: bytes, session: str) -> Measured:
        """Send it. Raises `RequestFailed`."""
        return await random.choice(self._doors).ask(raw, session)

    def close(self) -> None:
        for door in self._doors:
            door.close()


async def side(which: str, wish: Wish, asks: Sequence[Ask], folder: Path, told: Progress) -> Found:
    """Start it all, play, and count. Raises `CannotStart`, `Unreachable`."""
    count = 1 if which == "one" else wish.gateways
    ports = free_ports(21200 + random.Random(which).randrange(400) * 20)
    first = next(ports)
    engines = [f"p{at}" for at in range(wish.prefill)] + [f"d{at}" for at in range(wish.decode)]
    urls = {name: f"http://127.0.0.1:{first + at}" for at, name in enumerate(engines)}
    doors = [next(ports) + len(engines) for _ in range(count)]
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False))
        redis: list[str] = []
        if which != "private":
            redis = ["--redis", stack.enter_context(Embedded()).url]
        (folder / "fleet.toml").write_text(_fleet(urls, str(write_folder(folder / "tokenizer")), wish))
        argv = [sys.executable, "-m", "gateway.cli"]
        shape = ["--prefill", str(wish.prefill), "--decode", str(wish.decode), "--port", str(first)]
        shape += ["--profile", wish.profile, "--block-size", str(BLOCK), "--events"]
        doubles = Child("doubles", [*argv, "double", *shape], f"{urls[engines[-1]]}/health", folder / "doubles.log")
        serve = [*argv, "serve", "--config", str(folder / "fleet.toml"), "--log-level", "warning", *redis]
        gateways = [
            Child(f"g{port}", [*serve, "--port", str(port)], f"http://127.0.0.1:{port}/readyz", folder / f"{port}.log")
            for port in doors
        ]
        for child in (doubles, *gateways):
            stack.push_async_callback(child.kill)
            child.start()
            if child is doubles:
                await child.ready_within(http)
        await asyncio.gather(*(child.ready_within(http) for child in gateways))
        asker = Among([f"http://127.0.0.1:{port}" for port in doors], MODEL)
        stack.callback(asker.close)
        salt = str(wish.seed)
        player = Player(asker, asks, Prompts(asks, BLOCK, salt, Ids()), salt)
        task = told.add_task(which, total=wish.seconds)
        before: dict[str, float] = {}

        async def count_on() -> None:
            began_s = time.monotonic()
            while (spent_s := time.monotonic() - began_s) < wish.seconds:
                if spent_s >= wish.warm_s and not before:
                    before.update(await _computed(http, urls))
                told.update(task, completed=spent_s)
                await asyncio.sleep(0.5)

        playing = asyncio.create_task(player.run(lambda ended: None))
        counting = asyncio.create_task(count_on())
        await asyncio.wait((playing, counting), return_when=asyncio.FIRST_COMPLETED)
        after = await _computed(http, urls)
        for work in (playing, counting):
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        return _sum(which, wish, player.played, len(player.failed), before, after)


def _fleet(urls: dict[str, str], tokenizer: str, wish: Wish) -> str:
    engines = [
        {"name": name, "role": "prefill" if name[0] == "p" else "decode", "url": url} for name, url in urls.items()
    ]
    models = {MODEL: {"block_size": BLOCK, "tokenizer": tokenizer}}
    settings = {"policy": wish.policy, "admin": "", "stall_s": 300.0}
    return tomli_w.dumps({"gateway": settings, "models": models, "engines": engines})


async def _computed(http: httpx.AsyncClient, urls: dict[str, str]) -> dict[str, float]:
    """Tokens that each engine has computed so far: of prompts, and of answers by those that decode."""
    pages = await asyncio.gather(*(http.get(f"{url}/metrics") for url in urls.values()))
    found = {}
    for name, page in zip(urls, pages, strict=True):
        prompt = total(page.text, PROMPT_TOKENS_BY_SOURCE, {"source": "local_compute"}) or 0.0
        found[name] = prompt if name[0] == "p" else total(page.text, _GENERATED) or 0.0
    return found


def _sum(
    which: str, wish: Wish, played: Sequence[Played], failed: int, before: dict[str, float], after: dict[str, float]
) -> Found:
    import numpy as np

    mine = [one for one in played if one.arrived_s >= wish.warm_s]
    if not mine:
        raise Unreachable(f"{which}: no request was answered")
    balances = []
    for role in "pd":
        done = [after[name] - before.get(name, 0.0) for name in after if name[0] == role]
        balances.append(max(done) / mean(done))
    return Found(
        side=which,
        requests=len(mine),
        failed=failed,
        hit_rate=sum(one.cached for one in mine) / sum(one.prompt for one in mine),
        ttft_ms=spread(np.array([one.first_s - one.due_s for one in mine])),
        itl_ms=weighted([gap for one in mine for gap in one.gaps]),
        balance=max(balances),
    )


def gateways(
    side_: Annotated[
        list[str] | None, Option("--side", help=f"{', '.join(SIDES)}; may be repeated. [default: all]")
    ] = None,
    gateways: Annotated[int, Option(min=2, help="Of the sides that have several.")] = 4,
    prefill: Annotated[int, Option(min=1, help="Doubles that prefill.")] = 4,
    decode: Annotated[int, Option(min=1, help="Doubles that decode.")] = 4,
    workload: Annotated[
        str, Option(help="As for `baton replay`.")
    ] = "chat:rate=1.8,minutes=3,turns=4,answer=40,think=4",
    seconds: Annotated[float, Option(min=5, help="So long it is played; then it is broken off.")] = 130.0,
    warm_s: Annotated[float, Option(min=0, help="Requests of this first part do not count.")] = 25.0,
    profile: Annotated[
        str, Option(help="Of the engines; NAME:16 is 16 times as slow, for a small machine.")
    ] = "gpt-oss-120b-h100-tp4:16",
    policy: Annotated[str, Option(help="Of the gateways.")] = "joint",
    rounds: Annotated[int, Option(min=1, help="How often; all sides take turns, each round has other traffic.")] = 1,
    seed: Annotated[int, Option(help="Of the traffic.")] = 1,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """The same conversations through one gateway, through several that share their state, and several that do not.

    Every request goes to a gateway by chance, as behind a balancer. The shared ones have one Valkey, the private ones
    each their own index and load. Needs `numpy`.
    """
    sides = side_ or list(SIDES)
    if unknown := set(sides) - set(SIDES):
        raise typer.BadParameter(f"no side {', '.join(unknown)}: use {', '.join(SIDES)}")
    found: list[Found] = []
    stopped = False
    try:
        load(profile)
        with bar() as told:
            for at in range(rounds):
                wish = Wish(gateways, prefill, decode, workload, seconds, warm_s, profile, policy, seed + at)
                asks = generate(workload, BLOCK, wish.seed)
                for which in sides:
                    with tempfile.TemporaryDirectory(prefix="baton-") as folder:
                        found.append(asyncio.run(side(which, wish, asks, Path(folder), told)))
    except (CannotStart, Unreachable, BadWorkload, UnknownProfile) as error:
        typer.secho(f"baton load gateways: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; what had ended until then:" if found else "stopped before any had ended", err=True)
        stopped = True
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(found), indent=1))
    elif found:
        _show(found)
    if stopped:
        raise typer.Exit(130)


def _show(found: Sequence[Found]) -> None:
    table = Table(
        "gateways", "requests", "failed", "hit rate", "TTFT mean", "p99", "ITL mean", "max/mean", box=box.SIMPLE_HEAD
    )
    for one in found:
        table.add_row(
            one.side,
            str(one.requests),
            str(one.failed),
            f"{one.hit_rate:.1%}",
            f"{one.ttft_ms.mean:.0f} ms",
            f"{one.ttft_ms.p99:.0f} ms",
            f"{one.itl_ms.mean:.1f} ms",
            f"{one.balance:.3f}",
        )
    Console().print(table)
