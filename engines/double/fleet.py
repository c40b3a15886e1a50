"""A fleet of doubles."""

import asyncio
from typing import Any, Self

from engines.double.double import Double
from engines.double.process import Role


class Doubles:
    """A fleet of doubles: `async with Doubles(prefill=2, decode=2) as fleet: fleet.prefill[0].url`."""

    def __init__(self, prefill: int = 0, decode: int = 0, both: int = 0, **settings: Any) -> None:
        def some(role: Role, letter: str, count: int) -> list[Double]:
            return [Double(role, f"{letter}{at}", **settings) for at in range(count)]

        self.prefill = some("prefill", "p", prefill)
        self.decode = some("decode", "d", decode)
        self.both = some("both", "b", both)

    @property
    def all(self) -> list[Double]:
        return [*self.prefill, *self.decode, *self.both]

    async def __aenter__(self) -> Self:
        try:
            for double in self.all:
                await double.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(double.close() for double in self.all), return_exceptions=True)

    async def idle(self) -> None:
        """Wait until none has work."""
        await asyncio.gather(*(double.idle() for double in self.all))
