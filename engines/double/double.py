"""A double: one engine behind one port, with what a test wants to set, wait for and see."""

from collections.abc import Callable

from engines.double.app import App
from engines.double.process import Process, Received
from engines.double.stats import Stats


class Double(Process):
    """A stand-in for one vLLM engine: `async with Double("prefill", block_size=32) as double`."""

    def app(self) -> App:
        return App(self)

    async def until(self, condition: Callable[[Stats], bool]) -> None:
        """Wait until the counters satisfy `condition`."""
        await self.engine.until(condition)

    async def idle(self) -> None:
        """Wait until no sequence runs, waits or loads."""
        for engine in self.engines:
            await engine.until(lambda stats: not stats.busy)

    async def busy(self, count: int = 1) -> None:
        """Wait until at least `count` sequences are in the engine."""
        await self.engine.until(lambda stats: stats.busy >= count)

    async def unleased(self) -> None:
        """Wait until no blocks are kept for a decode engine."""
        await self.engine.until(lambda _: not self.engine.leases)

    async def request(self, count: int = 1) -> Received:
        """Wait until `count` requests have been received in all (and are still kept); returns the last of them."""
        while len(self.requests) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return self.requests[count - 1]

    async def died(self) -> None:
        """Wait until the engine has died."""
        await self.engine.until(lambda _: self.engine.dead)
        if self._ending is not None:
            await self._ending
