"""`baton up` and `baton demo`: engines and gateway on this machine, in the foreground."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from engines import layout
from engines.checks import CannotStart, alone, ports_are_free, to_start
from engines.console import Board
from engines.fleet import Fleet, FleetError
from engines.process import Process
from engines.supervisor import ProcessEnded, Service, Supervisor
from engines.tiny_model import make_tiny_model
from engines.vllm import launch

BATON = [sys.executable, "-m", "gateway.cli"]
STATE = Path(os.environ.get("BATON_STATE_DIR", ".baton"))
"""Logs, the resolved fleet file and the tiny model."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

FleetFile = Annotated[Path | None, Option("--fleet", help="Fleet file (TOML). [default: laid over this machine]")]
ModelName = Annotated[str | None, Option("--model", help="Model to serve: hub id or folder. [default: a small one]")]
Host = Annotated[str, Option(help="Address of the gateway.")]
Port = Annotated[int, Option(help="Port of the gateway.")]


def up(
    fleet: FleetFile = None,
    model: ModelName = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    sample: Annotated[bool, Option(help="Send one chat when all is ready.")] = True,
) -> None:
    """Start engines and gateway on this machine and stay in the foreground; Ctrl-C ends everything.

    Without --fleet the engines are laid over the NVIDIA GPUs there are; without a GPU, two real vLLM engines run on the
    CPU with a tiny model that is made here.
    """
    smoke = [*BATON, "smoke"] if sample else None
    raise typer.Exit(run(Session(fleet, model, host, port, smoke, stay=True)))


def demo(fleet: FleetFile = None, model: ModelName = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Start everything, send five varied requests, check that the decode engine fetched the KV, and end.

    Exits with 0 if all went as it should.
    """
    raise typer.Exit(run(Session(fleet, model, host, port, [*BATON, "smoke", "--demo"], stay=False)))


SHOWN = "lmetric"
"""The policy of a demonstration: it prefills everything remotely, while `joint` keeps short prompts on idle engines."""


class Session:
    """One run from start to end."""

    def __init__(
        self, fleet: Path | None, model: str | None, host: str, port: int, smoke: list[str] | None, *, stay: bool
    ) -> None:
        self.supervisor = Supervisor()
        self.ready = False
        self._fleet = fleet
        self._model = model
        self._address = host, port
        self._smoke = smoke
        self._stay = stay
        self._board = Board(Console())

    async def main(self) -> int:
        """Start, show, and wait; the exit status. Raises `CannotStart`, `FleetError`, `ProcessEnded`."""
        host, port = self._address
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        fleet = await asyncio.to_thread(self._lay)
        ports_are_free(fleet, host, port)
        file = _write(fleet)
        engines = _engines(fleet)
        self._board.say(f"Starting {len(engines)} engines and the gateway; logs are in {STATE / 'logs'}")
        command = [*BATON, "serve", "--config", str(file), "--host", host, "--port", str(port)]
        if not self._stay:
            command += ["--policy", SHOWN]
        process = Process("gateway", command, {}, STATE / "logs" / "gateway.log", grace_s=5.0)
        services = [*engines, Service(process, f"{url}/readyz", after=engines)]
        with self._board.watching(services) as shown:
            await self.supervisor.start(services, shown)
        self.ready = True
        self._board.ready(url, next(iter(fleet.models)))
        status = await self._sample(url) if self._smoke else 0
        if self._stay:
            self._board.say("Serving. Ctrl-C ends everything.")
            await self.supervisor.watch()
        return status

    def _lay(self) -> Fleet:
        """The fleet to start: the file's, or one for this machine."""
        if self._fleet is not None:
            if self._model is not None:
                raise CannotStart("--fleet and --model: give one of the two; the file names its models")
            return Fleet.load(self._fleet)
        if find_spec("vllm") is None:
            raise CannotStart("vLLM is not installed here: run `make up`, or `make install` first")
        gpus = layout.gpus()
        ports = layout.free_ports()
        if gpus:
            return layout.on_gpus(gpus, self._model or layout.GPU_MODEL, ports)
        if self._model is None:
            self._board.say("No NVIDIA GPU here: real vLLM engines on the CPU, with a tiny model that talks nonsense.")
        folder = Path(self._model).resolve() if self._model else make_tiny_model((STATE / "tiny-llama").resolve())
        if not (folder / "config.json").exists():
            raise CannotStart(
                f"--model {self._model}: no config.json there: on the CPU give a folder with a small model"
            )
        return layout.on_cpu(folder, ports)

    async def _sample(self, url: str) -> int:
        """Run the sample's requests, which print what they saw; the exit status. Raises `ProcessEnded`."""
        assert self._smoke is not None
        smoke = Process("smoke", [*self._smoke, "--url", url], {}, log=None, grace_s=1.0)
        await smoke.start()
        watch = asyncio.create_task(self.supervisor.watch())
        done = asyncio.create_task(smoke.wait())
        try:
            await asyncio.wait((watch, done), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                await watch
            return await done
        finally:
            watch.cancel()
            smoke.stop()
            await smoke.wait()


def run(session: Session) -> int:
    """Run a session under signals: the first ends it in order, the second at once. Returns the exit status."""
    try:
        with alone(STATE):
            return asyncio.run(_under_signals(session))
    except CannotStart as error:
        typer.secho(f"baton: {error}", fg="red", err=True)
        return 1


async def _under_signals(session: Session) -> int:
    loop = asyncio.get_running_loop()
    work = loop.create_task(session.main())
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            work.cancel()
        else:
            session.supervisor.kill()

    def told(*_: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, we are about to
            loop.call_soon_threadsafe(ask)

    # Not the loop's own handlers: those go with the loop, and a late Ctrl-C would then end us with a traceback.
    for name in ENDING:
        signal.signal(name, told)
    try:
        return await work
    except asyncio.CancelledError:
        typer.echo("\nbaton: ending everything; Ctrl-C again ends it at once", err=True)
        return 0 if session.ready else 130
    except (FleetError, ProcessEnded) as error:
        typer.secho(f"baton: {error}", fg="red", err=True)
        return 1
    finally:
        await session.supervisor.stop()
        for name in ENDING:
            signal.signal(name, signal.SIG_IGN)  # all has ended: a late one must not change our exit status


def _engines(fleet: Fleet) -> list[Service]:
    """The engines of this machine; those that share a GPU start one after another.

    vLLM measures the GPU's free memory while it starts, and gives up if a neighbour changes it meanwhile.
    """
    services: list[Service] = []
    last_on: dict[int, Service] = {}
    for engine in to_start(fleet):
        command, env = launch(fleet, engine, os.environ.get("PYTHONPATH", ""))
        process = Process(engine.name, command, env, STATE / "logs" / f"{engine.name}.log")
        before = [last_on[gpu] for gpu in engine.gpus if gpu in last_on]
        services.append(Service(process, f"{fleet.url(engine)}/health", after=before))
        last_on |= dict.fromkeys(engine.gpus, services[-1])
    return services


def _write(fleet: Fleet) -> Path:
    """The fleet as it was started, for the gateway and for whoever wants to read it."""
    path = STATE / "fleet.toml"
    path.write_text(fleet.to_toml())
    return path
