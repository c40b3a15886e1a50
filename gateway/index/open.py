"""Opens the index that the settings name: in Redis if there is a URL, in this process otherwise."""

from gateway.index.contract import Index
from gateway.index.events.election import Always, Leases
from gateway.index.memory import MemoryIndex
from gateway.index.redis import RedisIndex
from gateway.settings import Settings


async def open_index(settings: Settings, namespace: str) -> tuple[Index, Leases]:
    """The index of one namespace, and who decides what this gateway may write. Raises `Unavailable`."""
    if not settings.redis:
        return MemoryIndex(), Always()
    index = await RedisIndex.connect(settings.redis, namespace, budget_s=settings.lookup_budget_s)
    return index, index
