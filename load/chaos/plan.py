"""What decides a run, and the run."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from load.chaos.fleet import Fleet
from load.chaos.run import Report, Run, Shown
from load.chaos.tally import ALLOWED_ERRORS
from load.chaos.weather import Blow, all_hang, one_killed, storm

Scenario = Literal["storm", "calm", "kill-prefill", "kill-decode", "hang"]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides a run."""

    scenario: Scenario = "storm"
    seed: int = 1
    requests: int = 10_000
    rate: float = 60.0
    every_s: float = 2.0
    gateways: int = 2
    prefill: int = 4
    decode: int = 4
    command: str = ""

    @property
    def names(self) -> list[str]:
        counts = (("p", self.prefill), ("d", self.decode), ("g", self.gateways))
        return [f"{letter}{at}" for letter, count in counts for at in range(count)]

    def blows(self) -> list[Blow]:
        match self.scenario:
            case "storm":
                return storm(self.seed, self.requests, max(1, round(self.every_s * self.rate)), self.names, self.rate)
            case "kill-prefill" | "kill-decode":
                return one_killed(self.scenario.removeprefix("kill-"), self.requests)
            case "hang":
                return all_hang(self.names)
        return []

    @property
    def hangs(self) -> bool:
        return self.scenario == "hang"

    @property
    def settings(self) -> dict[str, Any]:
        """Of the gateways, beside the usual ones."""
        short = {"prefill_timeout_s": 0.3, "first_byte_timeout_s": 0.3, "idle_timeout_s": 0.3}
        short |= {"engine_wait_s": 0.3, "request_timeout_s": 1.0}
        return short if self.hangs else {}

    @property
    def errors(self) -> float:
        """The share of client errors that may be."""
        return 1.0 if self.hangs else ALLOWED_ERRORS

    @property
    def most(self) -> int:
        """Requests at once: a busy machine gets them slower, not later."""
        return 1200 if self.hangs else 200

    @property
    def patience_s(self) -> float:
        return 10.0 if self.hangs else 40.0


async def carry_out(
    plan: Plan, folder: Path, shown: Shown = lambda *_: None, stop: asyncio.Event | None = None
) -> Report:
    """Start a fleet in `folder`, run, end the fleet. Raises `CannotStart`."""
    stop = stop or asyncio.Event()
    async with Fleet(folder, plan.prefill, plan.decode, plan.gateways, plan.seed, plan.command, plan.settings) as fleet:
        return await Run(fleet, plan.seed, plan.blows(), plan.rate, plan.most, plan.patience_s)(
            plan.requests, shown, stop
        )
