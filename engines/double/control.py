"""`/double/control`: faults, times and ends of a double over HTTP."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engines.double.faults import FaultError
from engines.double.process import Process

_ORDERS = ("faults", "timing", "lease_s", "do")
_DEEDS = ("heal", "expire", "die", "revive")


def state(double: Process) -> dict[str, Any]:
    """How the double is set, and how busy it is."""
    return {
        "name": double.name,
        "role": double.role,
        "engine_id": double.engine_id,
        "lease_s": double.lease_s,
        "faults": {name: value for name, value in vars(double.faults).items() if not name.startswith("_")},
        "timing": dataclasses.asdict(double.timing),
        "running": double.stats.running,
        "waiting": double.stats.waiting + double.stats.loading,
        "leases": len(double.engine.leases),
        "cached_blocks": len(double.engine.pool.cached()),
    }


def order(double: Process, orders: Mapping[str, Any]) -> None:
    """Obey `{"faults": {..}, "timing": {..}, "lease_s": 5, "do": "heal|expire|die|revive"}`.

    What would break the connection that brought the order is left to `carry_out`. Raises `FaultError`, and changes
    nothing, if an order is not understood.
    """
    if unknown := sorted(set(orders) - set(_ORDERS)):
        raise FaultError(f"unknown order {unknown}: use {', '.join(_ORDERS)}")
    deed, timing = orders.get("do"), orders.get("timing", {})
    if deed not in (None, *_DEEDS):
        raise FaultError(f"unknown order {deed!r}: use {', '.join(_DEEDS)}")
    for name, value in timing.items():
        if not hasattr(double.timing, name) or not isinstance(value, int | float):
            raise FaultError(f"unknown timing {name!r} or value {value!r}")
    lease_s = float(orders.get("lease_s", double.lease_s))
    double.faults.set(**orders.get("faults", {}))
    for name, value in timing.items():
        setattr(double.timing, name, float(value))
    double.lease_s = lease_s
    if deed == "heal":
        double.faults.heal()
    elif deed == "expire":
        double.expire_leases()


async def carry_out(double: Process, orders: Mapping[str, Any]) -> None:
    """The rest of the orders, once the answer is out."""
    deed = orders.get("do")
    if deed == "die":
        await double.die()
    elif deed == "revive":
        await double.revive()
    elif double.alive:
        await double.refuse(double.faults.refuse)
