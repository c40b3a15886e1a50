"""Kinds of measured runs: those that the model can be fitted to, and those that it cannot explain."""

import statistics
from collections.abc import Iterable, Sequence
from enum import StrEnum

from load.fit.table import Row

STALL = 3.0
"""ITL p99 over its median, of engines that only decode: above this they did something else as well."""
SLOW = 10.0
"""TTFT over that of the same engines on one host: above this the network is all that was measured."""


class Kind(StrEnum):
    COLLOCATED = "collocated"
    SPLIT = "prefill/decode"
    STALLED = "stalled decode"
    """Pauses as long as a prefill, on engines that only decode."""
    UNLIKE = "unlike sizes"
    """Prefill and decode engines differ in tensor-parallel size."""
    SLOW = "slow network"

    @property
    def fitted(self) -> bool:
        """Whether the model's form claims to hold there."""
        return self in (Kind.COLLOCATED, Kind.SPLIT)


def kinds(rows: Sequence[Row]) -> dict[Row, Kind]:
    """What each row is, by its setup and its figures alone."""
    slow = _slow(rows)
    return {row: _kind(row, slow) for row in rows}


def held_out(rows: Iterable[Row]) -> set[Row]:
    """Every third row of each experiment; which one it begins with moves on from one experiment to the next."""
    order: dict[str, list[Row]] = {}
    for row in rows:
        order.setdefault(row.experiment, []).append(row)
    return {
        row
        for number, experiment in enumerate(order.values())
        for at, row in enumerate(experiment)
        if (number + at) % 3 == 2
    }


def _kind(row: Row, slow: set[str]) -> Kind:
    setup = row.setup
    if setup.prefill is None:
        return Kind.COLLOCATED
    if setup.network in slow:
        return Kind.SLOW
    if setup.prefill[1] != setup.decode[1]:
        return Kind.UNLIKE
    return Kind.STALLED if row.measured.itl_p99_ms > STALL * row.itl_p50_ms else Kind.SPLIT


def _slow(rows: Sequence[Row]) -> set[str]:
    """Networks over which the same engines take far longer than on one host."""
    near = {(row.setup.prefill, row.setup.decode, row.clients): row for row in rows if not row.setup.network}
    ratios: dict[str, list[float]] = {}
    for row in rows:
        twin = near.get((row.setup.prefill, row.setup.decode, row.clients))
        if row.setup.network and twin:
            ratios.setdefault(row.setup.network, []).append(row.measured.ttft_p50_ms / twin.measured.ttft_p50_ms)
    return {network for network, values in ratios.items() if statistics.median(values) > SLOW}
