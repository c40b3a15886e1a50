"""`baton engines`: the engines of this host, started, kept and asked."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from typer import Argument, Option

from engines import layout, sheet
from engines.checks import CannotStart, can_start, to_start
from engines.console import Board
from engines.control import Control, NoSupervisor, Refused, ask
from engines.fleet import Fleet, FleetError
from engines.foreground import run
from engines.keeper import Keeper
from engines.record import SecretError, read_secret
from engines.registrar import Registrar
from engines.shapes import PRESETS, lay, places
from engines.store import StoreError, parse
from engines.supervisor import Supervisor
from engines.topology import Topology
from engines.upgrade import Upgrade
from engines.verbs import SOCKET, STATE, Commands

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Start, keep and ask the engines of this host.")


Names = Annotated[list[str] | None, Argument(metavar="[NAME]...", help="Names of engines. [default: all]")]
Json = Annotated[bool, Option("--json", help="For scripts.")]


@app.command()
def up(
    file: Annotated[Path, Argument(metavar="FLEET", help="Fleet file (TOML).")],
    host: Annotated[
        str, Option(help="Start the engines of this host of the file. [default: those with our address]")
    ] = "",
    logs: Annotated[
        bool | None, Option("--logs/--no-logs", help="Print engines' logs. [default: not in a terminal]")
    ] = None,
    redis: Annotated[
        str, Option(envvar="BATON_REDIS", help="Register engines there, for gateways to find. [default: the file's]")
    ] = "",
    fleet_secret_file: Annotated[
        str, Option(envvar="BATON_FLEET_SECRET_FILE", help="The secret that gateways know. [default: the file's]")
    ] = "",
    advertise: Annotated[
        str, Option(help="Address at which gateways reach the engines. [default: the host's in the file]")
    ] = "",
) -> None:
    """Start this host's engines of a fleet file and keep them running, in the foreground.

    An engine that ends or hangs is started again; a changed fleet file is followed, one engine after another. SIGTERM
    drains the engines and ends them; a second one ends them at once.
    """
    console = Console()
    registry = Registry(redis, fleet_secret_file, advertise)
    session = Session(console, file, host, not console.is_terminal if logs is None else logs, registry)
    raise typer.Exit(run(session, STATE, console))


@app.command()
def status(as_json: Json = False) -> None:
    """What runs here, and how far it is."""
    engines: list[dict[str, Any]] = _ask({"verb": "status"})
    if as_json:
        typer.echo(json.dumps(engines, indent=2))
        return
    table = sheet.sheet(["engine", "role", "gpus", "phase"], ["for", "starts"])
    table.add_column("url", no_wrap=True)
    for e in engines:
        gpus = ",".join(map(str, e["gpus"]))
        table.add_row(e["name"], e["role"], gpus, e["stage"], f"{e['for_s']:.0f} s", str(e["starts"]), e["url"])
    sheet.show(table, Console())
    for e in engines:
        if e["why"]:
            typer.echo(f"{e['name']}, when it was last wrong: {e['why']}")


@app.command()
def restart(
    names: Names = None,
    now: Annotated[bool, Option("--now", help="Do not wait for running requests.")] = False,
) -> None:
    """Restart engines, one after another, also those that failed or were drained; each is drained before."""
    _ask({"verb": "restart", "names": names or [], "drain": not now})


@app.command()
def drain(names: Annotated[list[str], Argument(metavar="NAME...", help="Names of engines.")]) -> None:
    """Let engines finish what they do, then end them until `restart`."""
    _ask({"verb": "drain", "names": names})


@app.command()
def upgrade(
    file: Annotated[Path, Argument(metavar="NEWFLEET", help="Fleet file (TOML) to go to.")],
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be done.")] = False,
    watch_s: Annotated[
        float | None, Option(min=0, help="How long each new engine is watched. [default: the file's, 30]")
    ] = None,
    errors: Annotated[
        float | None, Option(min=0, help="Share of answers that may be errors, beside those before. [default: 0.02]")
    ] = None,
    ttft: Annotated[float | None, Option(help="So many times the TTFT of before is too slow. [default: 3]")] = None,
    itl: Annotated[float | None, Option(help="So many times the ITL of before is too slow. [default: 1.5]")] = None,
    as_json: Json = False,
) -> None:
    """Go to a new fleet file under load: one engine after another, prefill before decode, each drained before.

    Each new engine is watched. If one does not get ready, or it serves with more errors or slower than those before,
    all that was done is taken back. When all is done NEWFLEET takes the place of the file that is followed. Ctrl-C
    stops after the engine it is at; the same command goes on. Exits with 0 if all was done, 1 if it was taken back,
    130 if it was stopped.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: {error}") from None
    given = {"watch_s": watch_s, "watch_errors": errors, "watch_ttft": ttft, "watch_itl": itl}
    rules = {key: value for key, value in given.items() if value is not None}
    request = {"verb": "upgrade", "path": str(file.resolve()), "text": text, "rules": rules, "dry_run": dry_run}
    found: dict[str, Any] = _ask(request, halt={"verb": "halt"}, to_stderr=as_json)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif dry_run:
        for number, step in enumerate(found["plan"], 1):
            typer.echo(f"{number}. {step['do']} {', '.join(step['engines'])}")
        for line in found["warnings"] or ([] if found["plan"] else ["nothing to do"]):
            typer.echo(line)
    else:
        _say_outcome(found, file)
    if not dry_run and (found["why"] or found["left"]):
        raise typer.Exit(1 if found["why"] else 130)


def _say_outcome(found: dict[str, Any], file: Path) -> None:
    done, left = ", ".join(found["done"]), ", ".join(found["left"])
    if found["why"]:
        typer.secho(f"baton engines: taken back: {found['why']}", fg="red", err=True)
    elif left:
        typer.echo(f"stopped: {done or 'nothing'} is as in {file}, {left} is as before; the same command goes on")
    else:
        typer.echo(f"all engines are as in {file}")


@app.command("layout")
def layout_(
    preset: Annotated[
        str, Option(help=f"A shape such as 2P-TP2+1D-TP4, or {', '.join(p for p in PRESETS if '-' not in p)}.")
    ] = "packed",
    gpus: Annotated[int, Option(min=1, help="GPUs of each host.")] = 8,
    model: Annotated[str, Option(help="Hub id or folder.")] = layout.GPU_MODEL,
    host: Annotated[
        list[str] | None, Option(help="NAME=ADDRESS or NAME=ADDRESS/SHAPE of a host; repeated. [default: this machine]")
    ] = None,
) -> None:
    """Print a fleet file: engines laid over GPUs, those of one engine near each other where nvidia-smi tells.

    baton engines layout > fleet.toml

    baton engines layout --preset spread --host gpu1=10.0.0.1 --host gpu2=10.0.0.2

    baton engines layout --host gpu1=10.0.0.1/4P+4D --host gpu2=10.0.0.2/2D-TP4
    """
    try:
        args = layout.TOOLS if model == layout.GPU_MODEL else ()
        topology = Topology() if host else Topology.here()
        typer.echo(lay(model, places(host or (), preset, gpus), topology, args).to_toml(), nl=False)
    except FleetError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def logs(
    names: Names = None,
    lines: Annotated[int, Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show the end of engines' logs, every line under its engine's name."""
    engines = [e for e in _ask({"verb": "status"}) if not names or e["name"] in names]
    if missing := set(names or ()) - {e["name"] for e in engines}:
        raise typer.BadParameter(f"there is no {', '.join(sorted(missing))} here")
    tails = {e["name"]: _Tail(Path(e["log"])) for e in engines}
    for name, tail in tails.items():
        for line in tail.last(lines):
            typer.echo(f"{name} | {line}")
    while follow:
        time.sleep(0.2)
        for name, tail in tails.items():
            for line in tail.more():
                typer.echo(f"{name} | {line}")


class _Tail:
    """The end of a log, and what is added to it; follows it when it is turned over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = self._inode = 0

    def last(self, lines: int) -> list[str]:
        all_of_it = list(self.more())
        return all_of_it[len(all_of_it) - lines :] if lines else []

    def more(self) -> Iterator[str]:
        try:
            with self._path.open(errors="replace") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._at if inode == self._inode else 0)
                self._inode = inode
                while (line := file.readline()).endswith("\n"):
                    self._at = file.tell()
                    yield line.rstrip("\n")
        except OSError:
            return


def _ask(request: dict[str, Any], halt: dict[str, Any] | None = None, to_stderr: bool = False) -> Any:
    """Ask the supervisor of this folder, show how far it is, and return its answer; ends with 1 if it refuses.

    `halt`: what Ctrl-C asks for, once; then the answer is waited for all the same.
    """

    async def answered() -> Any:
        if halt is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: halts.append(_halt(halt)))
        async for told in ask(SOCKET, request):
            if "done" in told:
                return told["done"]
            typer.echo(told["say"], err=to_stderr)
        raise NoSupervisor("the supervisor said nothing")

    halts: list[asyncio.Task[None]] = []
    try:
        return asyncio.run(answered())
    except (Refused, NoSupervisor) as error:
        typer.secho(f"baton engines: {error}", fg="red", err=True)
        raise typer.Exit(1) from None


def _halt(request: dict[str, Any]) -> asyncio.Task[None]:
    """Ask for it beside what is waited for; the next Ctrl-C ends us, and nothing else."""

    async def halt() -> None:
        typer.echo("stopping after the engine it is at; Ctrl-C again leaves it to itself", err=True)
        async for told in ask(SOCKET, request):
            typer.echo(told.get("done", ""), err=True)

    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
    return asyncio.get_running_loop().create_task(halt())


class Registry(NamedTuple):
    """Where engines are registered, if anywhere."""

    redis: str
    secret_file: str
    advertise: str

    def registrar(self, keeper: Keeper, host: str) -> Registrar | None:
        """What registers them; None if there is no Redis. Raises `CannotStart`."""
        said = keeper.fleet.gateway
        url, file = self.redis or said.get("redis", ""), self.secret_file or said.get("fleet_secret_file", "")
        if not url:
            return None
        if not file:
            if self.redis:
                raise CannotStart("--redis: a registration needs the fleet's secret: give --fleet-secret-file")
            return None  # gateways share that Redis, and know the engines from the file
        try:
            parse(url)
            secret = read_secret(Path(file))
        except (StoreError, SecretError) as error:
            raise CannotStart(str(error)) from None
        first = min(port for service in keeper.specs().values() for _, port in service.ports)
        return Registrar(keeper, url, secret, f"{host or gethostname()}:{first}", self.advertise)


class Session:
    """One `baton engines up`."""

    def __init__(self, console: Console, file: Path, host: str, logs: bool, registry: Registry) -> None:
        self.supervisor = Supervisor(STATE / "logs", listener=_print if logs else None)
        self.ready = False
        self._registry = registry
        self._file = file
        self._host = host
        self._board = Board(console)

    async def main(self) -> int:
        """Start, show, and keep; raises `CannotStart`, `FleetError`, `Failed`."""
        fleet = Fleet.load(self._file)
        mine = to_start(fleet, self._host)
        if not mine:
            raise CannotStart(
                f"{self._file}: no engine is for this host: say which of "
                f"{', '.join(fleet.hosts)} it is with --host, or correct [hosts.*] address"
            )
        self.supervisor.rules = fleet.supervisor
        keeper = Keeper(self.supervisor, fleet, self._host)
        upgrades = Upgrade(keeper, self._file, STATE / "upgrade.json")
        if left := upgrades.resume():
            self._board.say(left)
        keeper.gpus = await asyncio.to_thread(layout.gpus)
        for wanted, engine in keeper.engines():
            can_start(wanted, [engine], keeper.gpus)
        registrar = self._registry.registrar(keeper, self._host)
        control = Control(SOCKET, Commands(keeper, upgrades))
        await control.start()
        following: asyncio.Task[None] | None = None
        try:
            if registrar is not None:
                self.supervisor.drains = True
                registrar.start()
            engines = self.supervisor.add(keeper.specs().values())
            self._board.say(f"Starting {len(engines)} engines; logs are in {STATE / 'logs'}")
            with self._board.watching(engines) as shown:
                await self.supervisor.ready(engines, shown, strict=False)
            self.ready = True
            self._board.say("Serving. Ctrl-C ends everything.")
            following = asyncio.create_task(keeper.follow(self._file))
            await asyncio.gather(following, self.supervisor.watch())
        finally:
            if following is not None:
                following.cancel()
            await self.supervisor.stop()
            if registrar is not None:
                await registrar.close()
            await control.close()
        return 0


def _print(name: str, line: str) -> None:
    sys.stdout.write(f"{name} | {line}\n")
    sys.stdout.flush()
