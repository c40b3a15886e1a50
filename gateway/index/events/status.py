"""How the events of one engine stand, for metrics and for people."""

from enum import StrEnum

import msgspec


class State(StrEnum):
    """What the index knows of a cache, and from whom."""

    FOLLOWING = "following"
    STANDBY = "standby"
    WAITING = "waiting"
    """Another gateway writes it to the index."""
    SILENT = "silent"
    OFF = "off"
    WRONG = "wrong"


class SourceStatus(msgspec.Struct, frozen=True):
    """One source; `why` names the thing, the place and the mend, and is empty where all is well."""

    engine: str
    rank: int
    state: State
    why: str = ""
    blocks: int = 0
    """Blocks in all tiers, as the events tell."""
    orphans: int = 0
    batches: int = 0
    gaps: int = 0
    resyncs: int = 0
    restarts: int = 0
    unreadable: int = 0
    lag_s: float = 0.0
    """Age of the last batch when it was applied, by both machines' clocks."""
