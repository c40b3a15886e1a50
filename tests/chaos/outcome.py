"""A run for a test, and what became of it."""

from pathlib import Path
from typing import Any

from load.chaos.plan import Plan, carry_out
from load.chaos.report import facts


async def outcome(plan: Plan, folder: Path) -> dict[str, Any]:
    """Carry a plan out."""
    report = await carry_out(plan, folder)
    assert not report.trouble
    return facts(plan, report, report.tally.good(plan.errors))
