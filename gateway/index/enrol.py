"""An engine comes up or goes: what is learnt of it, and what is forgotten.

Beside the requests, one task an engine: its block size, whether it reads prompts as we do, where its KV events are.
What fails is tried again; what is wrong is kept in words, with its mend, until the engine comes back.
"""

import asyncio
import logging
from typing import Protocol

import httpx
from msgspec import Raw

from gateway.fleet.engine import Engine
from gateway.fleet.facts import facts
from gateway.fleet.fleet import Fleet, of_model
from gateway.fleet.health import client
from gateway.index.contract import InFlight, Unavailable
from gateway.index.events.ingest import Ingest
from gateway.index.events.source import sources
from gateway.index.lookup import Lookup
from gateway.index.namespace import Namespace
from gateway.index.open import open_index
from gateway.index.redis import IndexMisconfigured
from gateway.prompt import probe, remote
from gateway.prompt.apis import COMPLETIONS
from gateway.prompt.prompts import Mode, PromptReader, Prompts
from gateway.settings import Settings

log = logging.getLogger(__name__)

DEFAULT_BLOCK_SIZE = 16
"""vLLM's, for engines that do not say."""

OFF = "off"
"""The `prompt_mode` without an index."""

_AGAIN_S = 1.0
_SHORT = {"prompt": Raw(b'"x"')}


class Tokenizers(Protocol):
    """Where the tokenizers of models are found."""

    async def reader(self, model: str) -> tuple[PromptReader | None, str]:
        """The model's reader; or none, and why."""
        ...


class Enrolment:
    """Keeps the namespaces of a `Lookup` in step with its fleet."""

    def __init__(self, fleet: Fleet, lookup: Lookup, tokenizers: Tokenizers, settings: Settings) -> None:
        self._fleet = fleet
        self._lookup = lookup
        self._tokenizers = tokenizers
        self._settings = settings
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self._read: dict[str, tuple[PromptReader | None, str]] = {}
        """Tokenizers of models whose index cannot be opened yet."""

    def up(self, engine: Engine) -> None:
        """The engine answers; nothing waits for what is learnt now."""
        self.down(engine, gone=False)
        engine.takes_ids = engine.renders = engine.enrolled = False
        if self._settings.prompt_mode == OFF:
            engine.enrolled = True
            return
        self._tasks[engine.name] = asyncio.create_task(self._enrol(engine), name=f"enrol {engine.name}")

    def down(self, engine: Engine, gone: bool) -> None:
        """The engine does not answer. `gone`: its process has ended, and its cache with it."""
        if (task := self._tasks.pop(engine.name, None)) is not None:
            task.cancel()
        namespace = self._lookup.namespaces.get(engine.model)
        if namespace is not None and gone:
            namespace.ingest.restarted(engine.url)

    async def elsewhere(self, engine: Engine) -> InFlight | None:
        """What other gateways have in flight there."""
        return await self._lookup.elsewhere(engine)

    def joined(self, engine: Engine) -> None:
        """It is enrolled when it is up."""

    def left(self, engine: Engine) -> None:
        """What is known of it holds until it is gone."""
        self.down(engine, gone=False)

    async def gone(self, engine: Engine) -> None:
        """Nothing runs there any more: what is known of it is forgotten, in the index too."""
        lookup, model = self._lookup, engine.model
        namespace = lookup.namespaces.get(model)
        named = engine.name in self._fleet.engines
        if not named:
            lookup.troubles.pop(engine.name, None)
        if namespace is None:
            return
        if not named:
            namespace.wrong.pop(engine.name, None)
            namespace.prompts.forget(engine.name)
        if not any(other.url == engine.url for other in self._fleet):
            namespace.names.pop(engine.incarnation, None)
            namespace.tell_names(of_model(model))
            await namespace.ingest.remove(engine.url, forget=True)
        if not any(other.model == model for other in self._fleet) and lookup.namespaces.get(model) is namespace:
            del lookup.namespaces[model]
            await namespace.close()

    async def _enrol(self, engine: Engine) -> None:
        async with client(engine, self._settings.health_timeout_s) as http:
            while True:
                try:
                    await self._learn(engine, http)
                except (httpx.HTTPError, Unavailable, IndexMisconfigured, OSError) as error:
                    trouble = f"engine {engine.name} is not in the index: {type(error).__name__}: {error}"
                    if self._lookup.troubles.get(engine.name) != trouble:
                        log.warning("%s", trouble)
                    self._lookup.troubles[engine.name] = trouble
                    await asyncio.sleep(_AGAIN_S)
                else:
                    self._lookup.troubles.pop(engine.name, None)
                    return

    async def _learn(self, engine: Engine, http: httpx.AsyncClient) -> None:
        told = await facts(http, engine.rank)
        namespace = await self._namespace(engine, told.block_size)
        if engine.started_s not in (0.0, told.started_s):
            namespace.ingest.restarted(engine.url)
            engine.pace.reset()
            engine.leftover.clear()
            self._fleet.trust.reset(engine)
        namespace.names.pop(engine.incarnation, None)
        engine.started_s = told.started_s
        namespace.names[engine.incarnation] = engine.url
        namespace.tell_names(of_model(engine.model))
        engine.kv_tokens = told.kv_tokens
        prompts = namespace.prompts
        namespace.wrong.pop(engine.name, None)
        if told.block_size not in (None, prompts.block_size):
            wrong = (
                f"engine {engine.name} has block size {told.block_size}, the others of model {engine.model} have "
                f"{prompts.block_size}: give all of them the same --block-size"
            )
            namespace.wrong[engine.name] = wrong
            log.warning("%s", wrong)
        published = await sources(engine.url, http)
        mine = [source for source in published if engine.rank in (None, source.rank)]
        await namespace.ingest.add(engine.url, mine)
        if prompts.reader is not None:
            prompts.verdict(engine.name, await probe.disagreement(http, engine.model, prompts.reader))
        if prompts.wants_renderer:
            engine.renders = (
                await remote.render(engine, COMPLETIONS, _SHORT, self._settings.health_timeout_s) is not None
            )
            if engine.renders:
                prompts.use(remote.Remote(self._fleet, engine.model, self._settings.health_timeout_s))
        engine.takes_ids = self._settings.send_ids and await probe.takes_ids(http, engine.model)
        engine.enrolled = True

    async def _namespace(self, engine: Engine, block_size: int | None) -> Namespace:
        """The namespace of the engine's model; the first engine that says its block size decides that."""
        async with self._opening:
            namespace = self._lookup.namespaces.get(engine.model)
            if namespace is None:
                size = block_size or DEFAULT_BLOCK_SIZE
                if engine.model not in self._read:
                    self._read[engine.model] = await self._tokenizers.reader(engine.model)
                reader, why = self._read[engine.model]
                mode = self._settings.prompt_mode
                prompts = Prompts(engine.model, size, reader, why, None if mode == "auto" else Mode(mode))
                index, leases = await open_index(self._settings, f"{engine.model}:{size}")
                index.publish(self._fleet.loads)
                del self._read[engine.model]
                namespace = Namespace(prompts, index, Ingest(index, leases, engine.model, size))
                self._lookup.namespaces[engine.model] = namespace
            return namespace

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
