"""Who ingests: one gateway leads an engine's events, one more follows along and is ready to take over.

The leader writes to the index. The standby keeps the same ledger without writing, because whoever takes over with an
empty one would have to wait for the engine to tell everything again. All others do nothing but try for a lease.
"""

from enum import StrEnum
from typing import Protocol

LEASE_S = 2.0
"""How long a gateway that died keeps its part."""

RENEW_S = 0.5


class Leases(Protocol):
    """Something that one gateway has at a time."""

    async def lease(self, name: str, ttl_s: float) -> bool:
        """Take or keep it; True if it is ours now. Raises `Unavailable`."""
        ...

    async def release(self, name: str) -> None:
        """Give it back, if it is ours. Raises `Unavailable`."""
        ...


class Always:
    """For a gateway that is alone."""

    async def lease(self, name: str, ttl_s: float) -> bool:
        return True

    async def release(self, name: str) -> None:
        return None


class Part(StrEnum):
    """What a gateway does with an engine's events."""

    LEADER = "leader"
    STANDBY = "standby"
    NONE = "none"


class Candidate:
    """One gateway's part in one stream of events."""

    def __init__(self, leases: Leases, stream: str) -> None:
        self._leases = leases
        self._lead, self._warm = f"lead:{stream}", f"warm:{stream}"
        self.part = Part.NONE

    async def stand(self) -> Part:
        """Take the best part there is, or keep ours. Raises `Unavailable`."""
        if await self._leases.lease(self._lead, LEASE_S):
            if self.part is Part.STANDBY:
                await self._leases.release(self._warm)
            self.part = Part.LEADER
        elif await self._leases.lease(self._warm, LEASE_S):
            self.part = Part.STANDBY
        else:
            self.part = Part.NONE
        return self.part

    async def resign(self) -> None:
        """Give back what we have. Raises `Unavailable`."""
        if self.part is Part.LEADER:
            await self._leases.release(self._lead)
        elif self.part is Part.STANDBY:
            await self._leases.release(self._warm)
        self.part = Part.NONE
