"""How the prompts of one model are read, and whether that can be trusted.

`local`: we render and tokenise, because every engine that was asked reads as we do. `render`: an engine does it, one
more call. `learned`: nobody does it in advance; the prefill engine's answer brings the ids for the decode engine, and
the text says where a conversation was before. A wrong reading is noticed and drops the model to `learned`, loudly.
"""

import asyncio
import logging
import time
from array import array
from enum import StrEnum
from typing import Protocol

import msgspec

from gateway.prompt.apis import Api
from gateway.prompt.body import Fields
from gateway.prompt.reader import Prompt
from gateway.prompt.reading import Reading, of_ids, of_text

log = logging.getLogger(__name__)

CHECK_EVERY = 1000
CHECK_EVERY_S = 10.0
"""How often the prefill engine is asked for its ids, to compare: requests, or seconds, whatever comes first."""

RENDERED_BYTES = 16 << 10
"""A longer prompt is not worth an engine's time to render twice."""


class Mode(StrEnum):
    """Where token ids come from."""

    LOCAL = "local"
    RENDER = "render"
    LEARNED = "learned"


class PromptReader(Protocol):
    """Turns a request into token ids, in this process."""

    def read(self, api: Api, fields: Fields) -> Prompt:
        """The prompt's ids, or why there are none. Never raises for what a client sent."""
        ...

    def heavy(self, api: Api, fields: Fields) -> bool:
        """Whether `read` would take so long that it belongs into a thread."""
        ...


class Renderer(Protocol):
    """Has an engine turn a request into token ids."""

    async def __call__(self, api: Api, fields: Fields) -> bytes | None: ...


class Prompts:
    """Prompts of one model with one block size. `why` says why the mode is not `local`; empty if it is."""

    def __init__(
        self,
        model: str,
        block_size: int,
        reader: PromptReader | None = None,
        why: str = "no tokenizer: give its folder",
        wanted: Mode | None = None,
    ) -> None:
        self.model = model
        self.block_size = block_size
        self.reader = reader
        self.renderer: Renderer | None = None
        self._no_reader = why
        self._wanted = wanted
        self._verdicts: dict[str, str] = {}
        self._drift = ""
        self._since_check = CHECK_EVERY
        self._checked_s = 0.0
        self.checks = self.mismatches = 0
        self.mode, self.why = Mode.LEARNED, ""
        self._settle()

    def verdict(self, engine: str, differs: str) -> None:
        """What the probe of an engine found; empty: it reads as we do. A fresh verdict forgets earlier drift."""
        self._verdicts[engine] = differs
        self._drift = ""
        self._settle()

    def forget(self, engine: str) -> None:
        """An engine has left."""
        if self._verdicts.pop(engine, None) is not None:
            self._settle()

    def _settle(self) -> None:
        before = self.mode
        self.mode, self.why = self._choose()
        if before is Mode.LOCAL and self.mode is not Mode.LOCAL:
            log.warning("model %s: prompts are no longer read here (%s): %s", self.model, self.mode, self.why)
        elif self.mode is Mode.LOCAL and before is not Mode.LOCAL:
            log.info("model %s: prompts are read here", self.model)

    def _choose(self) -> tuple[Mode, str]:
        if self._wanted is Mode.LOCAL and self.reader is not None:
            return Mode.LOCAL, self._doubt()
        elsewhere = Mode.RENDER if self.renderer is not None else Mode.LEARNED
        if self._wanted is not None and self._wanted is not Mode.LOCAL:
            if self._wanted is Mode.RENDER and self.renderer is None:
                return Mode.LEARNED, "no engine renders prompts for others: start one with --enable-scale-out"
            return self._wanted, ""
        if self.reader is None:
            return elsewhere, self._no_reader
        doubt = self._doubt() or ("" if self._verdicts else "no engine has been compared yet")
        return (elsewhere, doubt) if doubt else (Mode.LOCAL, "")

    def _doubt(self) -> str:
        for engine, differs in self._verdicts.items():
            if differs:
                return (
                    f"engine {engine} reads prompts differently ({differs}): give the folder with the tokenizer and "
                    "the chat template that it uses"
                )
        return self._drift

    @property
    def wants_renderer(self) -> bool:
        """Whether an engine that renders would be of use."""
        return self._wanted is Mode.RENDER or (self._wanted is None and self.mode is not Mode.LOCAL)

    def use(self, renderer: Renderer) -> None:
        """An engine can render prompts for us."""
        self.renderer = renderer
        self._settle()

    async def read(self, api: Api, fields: Fields, lora: str = "") -> Reading:
        """Read one prompt. Long ones are read in a thread; the event loop is never held for more than some ms."""
        why = self.why
        if self.mode is Mode.LOCAL and self.reader is not None:
            if self.reader.heavy(api, fields):
                return await asyncio.to_thread(self._read_here, self.reader, api, fields, lora)
            return self._read_here(self.reader, api, fields, lora)
        if self.mode is Mode.RENDER and self.renderer is not None and len(fields[api.prompt]) <= RENDERED_BYTES:
            ids = await self.renderer(api, fields)
            if ids:
                return of_ids(ids, self.model, self.block_size, lora)
            why = "the engine did not render it"
        return of_text(api, fields, self.model, lora, why=why)

    def _read_here(self, reader: PromptReader, api: Api, fields: Fields, lora: str) -> Reading:
        prompt = reader.read(api, fields)
        if prompt.ids:
            return of_ids(prompt.ids, self.model, self.block_size, lora)
        return of_text(api, fields, self.model, lora, why=prompt.why)

    def due(self) -> bool:
        """Whether the next prefill should return its ids for a comparison; counts requests."""
        self._since_check += 1
        now = time.monotonic()
        if self._since_check < CHECK_EVERY and now < self._checked_s + CHECK_EVERY_S:
            return False
        self._since_check, self._checked_s = 0, now
        return True

    def compare(self, reading: Reading, engine: str, counted: int, ids: msgspec.Raw | None = None) -> None:
        """Hold what a prefill engine read against our reading; `ids` is its JSON list, if it returned one."""
        if reading.ids is None:
            return
        self.checks += 1
        drift = ""
        if counted != reading.tokens:
            drift = f"{counted} tokens in engine {engine}, {reading.tokens} here"
        elif ids is not None and array("I", msgspec.json.decode(ids, type=list[int])).tobytes() != reading.ids:
            drift = f"other token ids in engine {engine}"
        if not drift:
            return
        self.mismatches += 1
        if not self._drift:
            self._drift = f"{drift}: has its chat template or tokenizer changed? Give the folder that it uses"
            log.warning("model %s: %s", self.model, self._drift)
        self._settle()
