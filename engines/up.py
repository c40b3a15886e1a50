"""`baton up` and `baton demo`: engines and gateway on this machine, in the foreground."""

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from engines import layout
from engines.checks import CannotStart, can_start, ports_are_free, to_start
from engines.console import Board
from engines.control import Control
from engines.fleet import Fleet
from engines.foreground import run
from engines.keeper import Keeper
from engines.process import Process
from engines.spec import Spec
from engines.supervisor import Supervisor
from engines.tiny_model import make_tiny_model
from engines.upgrade import Upgrade
from engines.verbs import SOCKET, STATE, Commands

BATON = [sys.executable, "-m", "gateway.cli"]
FleetFile = Annotated[Path | None, Option("--fleet", help="Fleet file (TOML). [default: laid over this machine]")]
ModelName = Annotated[str | None, Option("--model", help="Model to serve: hub id or folder. [default: a small one]")]
Host = Annotated[str, Option(help="Address of the gateway.")]
Port = Annotated[int, Option(min=1, max=65535, help="Port of the gateway.")]


def up(
    fleet: FleetFile = None,
    model: ModelName = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    sample: Annotated[bool, Option(help="Send one chat when all is ready.")] = True,
) -> None:
    """Start engines and gateway on this machine and stay in the foreground; Ctrl-C ends everything.

    Without --fleet the engines are laid over the NVIDIA GPUs there are; without a GPU, two real vLLM engines run on the
    CPU with a tiny model that is made here. An engine that ends is started again; `baton engines` asks and tells them.
    """
    smoke = [*BATON, "smoke"] if sample else None
    console = Console()
    raise typer.Exit(run(Session(console, fleet, model, host, port, smoke, stay=True), STATE, console))


def demo(fleet: FleetFile = None, model: ModelName = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Start everything, send five varied requests, check that the decode engine fetched the KV, and end.

    Exits with 0 if all went as it should.
    """
    console = Console()
    smoke = [*BATON, "smoke", "--demo"]
    raise typer.Exit(run(Session(console, fleet, model, host, port, smoke, stay=False), STATE, console))


SHOWN = "lmetric"
"""The policy of a demonstration: it prefills everything remotely, while `joint` keeps short prompts on idle engines."""


class Session:
    """One run from start to end."""

    def __init__(
        self,
        console: Console,
        fleet: Path | None,
        model: str | None,
        host: str,
        port: int,
        smoke: list[str] | None,
        *,
        stay: bool,
    ) -> None:
        self.supervisor = Supervisor(STATE / "logs")
        self.ready = False
        self._fleet = fleet
        self._model = model
        self._address = host, port
        self._smoke = smoke
        self._stay = stay
        self._board = Board(console)

    async def main(self) -> int:
        """Start, show, and wait; the exit status. Raises `CannotStart`, `FleetError`, `Failed`."""
        host, port = self._address
        fleet = await asyncio.to_thread(self._lay)
        ports_are_free(fleet, host, port)
        gpus = await asyncio.to_thread(layout.gpus)
        can_start(fleet, to_start(fleet), gpus)
        file = _write(fleet)
        self.supervisor.rules = fleet.supervisor
        keeper = Keeper(self.supervisor, fleet)
        keeper.gpus = gpus
        control = Control(SOCKET, Commands(keeper, Upgrade(keeper, file, STATE / "upgrade.json")))
        await control.start()
        try:
            return await self._keep(keeper, file)
        finally:
            await self.supervisor.stop()
            await control.close()

    async def _keep(self, keeper: Keeper, file: Path) -> int:
        host, port = self._address
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        specs = keeper.specs()
        self._board.say(f"Starting {len(specs)} engines and the gateway; logs are in {STATE / 'logs'}")
        command = [*BATON, "serve", "--config", str(file), "--host", host, "--port", str(port)]
        if not self._stay:
            command += ["--policy", SHOWN]
        engines = self.supervisor.add(specs.values(), patient=False)
        with self._board.watching(engines) as shown:
            await self.supervisor.ready(engines, shown)
        gateway = self.supervisor.add([Spec("gateway", tuple(command), f"{url}/readyz")], patient=False)
        with self._board.watching(gateway) as shown:
            await self.supervisor.ready(gateway, shown)
        self.ready = True
        self._board.ready(url, next(iter(keeper.fleet.models)))
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
        """Run the sample's requests, which print what they saw; the exit status. Raises `Failed`."""
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


def _write(fleet: Fleet) -> Path:
    """The fleet as it was started, for the gateway and for whoever wants to read it."""
    path = STATE / "fleet.toml"
    path.write_text(fleet.to_toml())
    return path
