"""Everything that one model needs to be looked up: its prompts, its index, and who feeds it."""

import logging
from collections.abc import Sequence

from gateway.fleet.engine import Engine
from gateway.index.contract import Index
from gateway.index.events.ingest import Ingest
from gateway.prompt.prompts import Prompts

log = logging.getLogger(__name__)


class Namespace:
    """One model with one block size. `index` is None until the index can be reached."""

    def __init__(self, prompts: Prompts, index: Index, ingest: Ingest) -> None:
        self.prompts = prompts
        self.index = index
        self.ingest = ingest
        self.wrong: dict[str, str] = {}
        """Engine -> what keeps it from being looked up rightly, and the mend."""
        self.names: dict[str, str] = {}
        """Name under which guesses about an incarnation of an engine are kept -> the engine's URL."""

    def warnings(self) -> list[str]:
        """What keeps this model's prompts from being found, each with its mend."""
        told = list(self.wrong.values())
        if self.prompts.why:
            told.append(f"model {self.prompts.model}: prompts are {self.prompts.mode}: {self.prompts.why}")
        told += [status.why for status in self.ingest.status() if status.why]
        return told

    def split(self, engines: Sequence[Engine]) -> tuple[list[str], list[str]]:
        """Names for guesses about these engines: with events (short-lived guesses), without (long-lived ones)."""
        exact: list[str] = []
        blind: list[str] = []
        for engine in engines:
            (blind if self.ingest.approximate(engine.url) else exact).append(engine.incarnation)
        return exact, blind

    def tell_names(self, *others: str) -> None:
        """Tell the index of whom other gateways may speak: these engines, and `others`."""
        self.index.know([*self.names, *self.names.values(), *others])

    async def close(self) -> None:
        await self.ingest.close()
        await self.index.close()
