"""`baton native`: compiles the hot path to C with mypyc."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import typer

from gateway.native import loader

HOT = (
    "gateway.admission.keys",
    "gateway.api.client",
    "gateway.api.serving",
    "gateway.connector.lease",
    "gateway.dispatch.budget",
    "gateway.dispatch.course",
    "gateway.dispatch.expiry",
    "gateway.dispatch.failure",
    "gateway.dispatch.ids",
    "gateway.dispatch.journey",
    "gateway.dispatch.legs",
    "gateway.dispatch.relay",
    "gateway.dispatch.seam",
    "gateway.dispatch.trail",
    "gateway.dispatch.verdict",
    "gateway.dispatch.watchdog",
    "gateway.fleet.backlog",
    "gateway.fleet.booking",
    "gateway.fleet.breaker",
    "gateway.fleet.engine",
    "gateway.fleet.fleet",
    "gateway.fleet.line",
    "gateway.fleet.links",
    "gateway.fleet.pace",
    "gateway.fleet.traffic",
    "gateway.fleet.trust",
    "gateway.front.call",
    "gateway.front.connection",
    "gateway.front.turnstile",
    "gateway.index.guesses",
    "gateway.index.lookup",
    "gateway.index.namespace",
    "gateway.index.redis.buckets",
    "gateway.index.redis.budget",
    "gateway.index.redis.link",
    "gateway.index.redis.loads",
    "gateway.index.redis.shard",
    "gateway.index.redis.wire",
    "gateway.index.sight",
    "gateway.prompt.body",
    "gateway.prompt.hashes",
    "gateway.prompt.messages",
    "gateway.prompt.prompts",
    "gateway.prompt.reader",
    "gateway.prompt.render",
    "gateway.prompt.split",
    "gateway.prompt.tokenizer",
    "gateway.routing.decide",
    "gateway.routing.router",
    "gateway.routing.slot",
    "gateway.telemetry.tracing",
    "gateway.wire.answer",
    "gateway.wire.connection",
    "gateway.wire.deadline",
    "gateway.wire.head",
    "gateway.wire.incoming",
    "gateway.wire.pool",
    "policies.alike",
    "policies.formulas",
    "policies.minimum",
    "policies.stalls",
)
"""Every module that a request passes, but those that define structs of msgspec (whose fields are read from annotations
that mypyc does not keep), metrics (subclasses of prometheus_client's crash), and classes of policies (which an
operator's own inherit from).
"""

_SETUP = """
from mypyc.build import mypycify
from setuptools import setup

setup(
    name="baton-native",
    packages=[],
    py_modules=[],
    ext_modules=mypycify(
        [*{files!r}, "--config-file=", "--follow-imports=silent", "--ignore-missing-imports"],
        opt_level="1",
        group_name="baton",
    ),
)
"""


class BuildError(Exception):
    """Nothing was compiled; the message says what is missing, or ends with what the compiler said."""


def build(root: Path, modules: Sequence[str], rooms: Sequence[str], into: Path) -> None:
    """Compile `modules` below `root` and put the result `into` place, replacing what was there. Raises `BuildError`."""
    for tool, mend in (("mypyc", "pip install 'baton-gateway[native]'"), ("setuptools", "pip install setuptools")):
        if not _has(tool):
            raise BuildError(f"{tool} is missing: {mend}")
    files = [module.replace(".", "/") + ".py" for module in modules]
    before = loader.digest(root, rooms)
    with tempfile.TemporaryDirectory(prefix="baton-native-") as place:
        work, out = Path(place, "work"), Path(place, "out")
        for room in {Path(room).parts[0] for room in (*files, *rooms)}:
            shutil.copytree(root / room, work / room, ignore=shutil.ignore_patterns("__pycache__"))
        (work / "setup.py").write_text(_SETUP.format(files=files))
        command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={out}"]
        done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise BuildError(_mend(done.stdout))
        found = {str(path.relative_to(out)) for path in out.rglob("*.so")}
        names = {file.removesuffix(EXTENSION_SUFFIXES[0]).replace("/", "."): file for file in sorted(found)}
        manifest = {"suffix": EXTENSION_SUFFIXES[0], "digest": before, "files": names}
        (out / "manifest.json").write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(out, into)


def _has(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def _mend(said: str) -> str:
    """What the compiler said, in a line if the reason is a common one."""
    if "Python.h" in said:
        return "Python's headers are missing: apt-get install python3-dev (or your system's name for it)"
    if "command 'gcc' failed" in said or "No such file or directory: 'gcc'" in said or "unable to execute" in said:
        return "there is no C compiler: apt-get install gcc\n" + said[-500:]
    return said[-3000:]


def native(
    check: bool = typer.Option(False, "--check", help="Only say whether compiled modules are in use."),
    optional: bool = typer.Option(False, "--optional", help="End with 0 where they cannot be made."),
) -> None:
    """Compile the hot path of the gateway to C: the same code for half to three quarters of the CPU.

    Needs a C compiler and Python's headers, takes two minutes. Sources that change afterwards are interpreted again
    until the next `baton native`; BATON_NATIVE=0 turns it off.
    """
    if not check:
        typer.echo(f"compiling {len(HOT)} modules (a minute or two)")
        try:
            build(loader.ROOT, HOT, loader.ROOMS, loader.BUILT)
        except BuildError as error:
            typer.echo(
                f"not compiled: {error}\nThe gateway runs as well without, at about 1.5 times the CPU.", err=True
            )
            raise typer.Exit(0 if optional else 1) from None
    files, why = loader.stands(loader.BUILT, loader.ROOT)
    typer.echo(f"{len(files)} compiled files in {loader.BUILT}" if files else f"interpreted: {why}")
    raise typer.Exit(0 if files or optional else 1)
