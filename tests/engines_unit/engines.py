"""`baton engines up` as a process of its own, over stubs of vLLM."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.control import ask
from tests.engines_unit import vllm_stub
from tests.engines_unit.baton import Baton

RULES = "backoff_s = 0.05\ncrashes = 3\nstop_s = 5\ndrain_s = 2\nwatch_s = 0\n"


class Engines(Baton):
    """One `baton engines up` with stub engines."""

    def __init__(
        self, folder: Path, *roles: str, rules: str = RULES, more: str = "", through: Sequence[str] = ()
    ) -> None:
        self.roles = roles or ("prefill", "decode")
        self.rules = rules
        self.more = more
        self.through = through
        self.taken: dict[str, int] = {}
        super().__init__(folder, "engines", "up")

    def command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """Another verb of `baton engines`, and its environment."""
        env = {**os.environ, "BATON_STATE_DIR": str(self.folder / "state")}
        return [sys.executable, "-m", "gateway.cli", "engines", *arguments], env

    @property
    def file(self) -> Path:
        return self.folder / "fleet.toml"

    def prepare(self) -> None:
        if not (self.folder / "vllm").exists():
            vllm_stub.write(self.folder)
        if not self.file.exists():
            self.write({f"{role[0]}{at}": role for at, role in enumerate(self.roles)})

    def text(self, engines: dict[str, str], rules: str = "", calls: dict[str, str] | None = None, **more: str) -> str:
        """A fleet file: names and roles, what some call themselves to their stub, and more lines for some of them."""
        text = f"[models.stub]\n[supervisor]\n{rules or self.rules}"
        for name, role in engines.items():
            port = self.taken.setdefault(name, next(self.ports))
            text += (
                f'[[engines]]\nname = "{name}"\nrole = "{role}"\nport = {port}\n{more.get(name, self.more)}\n'
                f'env = {{PYTHONPATH = "{self.folder}", NAME = "{(calls or {}).get(name, name)}"}}\n'
            )
        return text

    def write(self, engines: dict[str, str], **more: str) -> None:
        """Change the fleet file that is followed."""
        new = self.file.with_suffix(".new")
        new.write_text(self.text(engines, "", None, **more))
        new.rename(self.file)

    def arguments(self, *given: str) -> list[str]:
        return [*given, str(self.file), "--no-logs"]

    def go(self, *names: str) -> None:
        """Let engines become ready."""
        for name in names:
            (self.folder / f"go-{name}").touch()

    def serving(self) -> None:
        """All are ready."""
        self.go(*self.taken)
        self.shows("Ctrl-C ends everything")
        self.look()

    def starts(self, name: str) -> list[dict[str, Any]]:
        """How an engine was started, each time."""
        file = self.folder / f"started-{name}"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def look(self) -> None:
        super().look()
        ids = self.folder / "ids"
        self.seen |= {int(word) for word in ids.read_text().split()} if ids.exists() else set()

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another verb of `baton engines`."""
        command, env = self.command(*arguments)
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    def status(self) -> dict[str, dict[str, Any]]:
        """As `baton engines status --json`, without starting an interpreter."""

        async def told() -> list[dict[str, Any]]:
            (answer,) = [line async for line in ask(self.folder / "state" / "engines.sock", {"verb": "status"})]
            engines: list[dict[str, Any]] = answer["done"]
            return engines

        return {engine["name"]: engine for engine in asyncio.run(told())}

    def phase(self, name: str) -> str:
        phase: str = self.status()[name]["phase"]
        return phase

    def asked_to_end(self) -> int:
        self.look()
        self.process.send_signal(signal.SIGTERM)
        return self.ends()
