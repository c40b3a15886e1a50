"""Step 4 of the journey: read the prompt, and ask the index who holds the beginning of it.

Never in the way: where something is missing (the model's tokenizer, the index, an engine's events) a request goes by
what is left, by load alone in the end, counted and shown.
"""

import asyncio
import time
from collections.abc import Sequence

import msgspec
from xxhash import xxh3_64_digest

from gateway.fleet.engine import Engine, State
from gateway.fleet.fleet import Fleet
from gateway.index.contract import InFlight, Unavailable
from gateway.index.namespace import Namespace
from gateway.index.sight import Sight
from gateway.prompt.apis import Api
from gateway.prompt.body import Fields
from gateway.prompt.reading import BYTES_PER_TOKEN, Reading, of_ids
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

BEAT_S = 0.5
"""A load that changed tells itself with the next lookup; one that lasts is told again this often."""


class Lookup:
    """The prefix index as requests see it, for all models of a fleet."""

    def __init__(self, fleet: Fleet, metrics: Metrics, settings: Settings) -> None:
        self.namespaces: dict[str, Namespace] = {}
        """By the model that engines serve (not by adapter)."""
        self._fleet = fleet
        self._metrics = metrics
        self._settings = settings
        self._beating: asyncio.Task[None] | None = None
        self.troubles: dict[str, str] = {}
        """Engine -> why it is not in the index at all."""

    def start(self) -> None:
        """Keep telling the other gateways what this one has in flight."""
        self._beating = asyncio.create_task(self._beat(), name="load beat")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for namespace in self.namespaces.values():
                namespace.index.beat()

    async def look(self, model: str, api: Api, fields: Fields, size: int, session: bytes = b"") -> Sight:
        """Read and look up one prompt; `size` is the body's, bytes. Never fails: less is known then."""
        base, lora = self._fleet.base(model)
        namespace = self.namespaces.get(base)
        if namespace is None or api.prompt not in fields:
            return Sight(Reading(max(1, size // BYTES_PER_TOKEN), b"", 1, why="nothing is known of the model yet"))
        start = time.perf_counter()
        reading = await namespace.prompts.read(api, fields, lora)
        read = time.perf_counter()
        self._metrics.reading(namespace.prompts.mode).observe(read - start)
        try:
            match = await namespace.index.match(reading.hashes, session and xxh3_64_digest(session))
        except Unavailable:
            self._metrics.lookups("unavailable").inc()
            return Sight(reading, namespace=namespace)
        self._metrics.lookup(base).observe(time.perf_counter() - read)
        sight = Sight(reading, match, namespace)
        self._metrics.lookups("hit" if sight.anything else "miss").inc()
        return sight

    async def elsewhere(self, engine: Engine) -> InFlight | None:
        """What other gateways have in flight on an engine."""
        namespace = self.namespaces.get(engine.model)
        if namespace is None:
            return None
        try:
            return (await namespace.index.match(b"")).others.get(engine.url)
        except Unavailable:
            return None

    async def again(self, sight: Sight, model: str, ids: bytes) -> Sight:
        """Look a longer prompt up whose ids (little-endian uint32) are known; one that goes on where `sight` ended."""
        namespace = sight.namespace
        if namespace is None or sight.reading.ids is None:
            return sight
        lora = self._fleet.base(model)[1]
        reading = of_ids(ids, namespace.prompts.model, namespace.prompts.block_size, lora)
        try:
            return Sight(reading, await namespace.index.match(reading.hashes), namespace)
        except Unavailable:
            return Sight(reading, namespace=namespace)

    def placed(self, sight: Sight, engines: Sequence[Engine], session: bytes = b"") -> None:
        """A prompt goes to these engines, the one that decodes last: the next one like it should know."""
        namespace, hashes = sight.namespace, sight.reading.hashes
        if namespace is None or not hashes:
            return
        exact, blind = namespace.split(engines)
        if sight.reading.ids is None:
            blind, exact = blind + exact, []  # hashes of text: no event will ever confirm them
        if exact:
            namespace.index.expect(hashes, exact, self._settings.speculation_s)
        if blind:
            namespace.index.learn(hashes, blind, self._settings.learned_s)
        if session:
            bound = engines[-1].incarnation
            namespace.index.bind(hashes, xxh3_64_digest(session), bound, self._settings.session_s)

    def prefilled(
        self, sight: Sight, engine: Engine, counted: int, cached: int | None, ids: msgspec.Raw | None
    ) -> None:
        """A prefill engine has answered: what it counted, and perhaps its cached tokens and its ids (JSON)."""
        namespace = sight.namespace
        if namespace is None:
            return
        namespace.prompts.compare(sight.reading, engine.name, counted, ids)
        namespace.ingest.served(engine.url, counted - (cached or 0))
        if cached is not None:
            self._metrics.prefix_tokens(engine.name, "actual").inc(cached)
        self._metrics.prefix_tokens(engine.name, "predicted").inc(sight.cached(engine.url))
        self._metrics.prefix_tokens(engine.name, "prompt").inc(counted)

    @property
    def settled(self) -> bool:
        """Whether all is known of the engines that are up: a request now would be placed as any later one."""
        up = (engine for engine in self._fleet if engine.state is State.UP)
        return all(engine.enrolled for engine in up) and all(n.ingest.settled for n in self.namespaces.values())

    def warnings(self) -> list[str]:
        """What keeps prompts from being found, each with its mend."""
        told = [warning for namespace in self.namespaces.values() for warning in namespace.warnings()]
        return told + list(self.troubles.values())

    async def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        for namespace in self.namespaces.values():
            await namespace.close()
