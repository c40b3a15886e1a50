"""Engines whose index cannot be opened are tried again, and nothing is read twice for it."""

import pytest

from engines.double import Double
from engines.fleet import Fleet as FleetFile
from gateway.app import fleet_of
from gateway.index import enrol
from gateway.index.contract import Unavailable
from gateway.index.lookup import Lookup
from gateway.index.open import open_index
from gateway.prompt.prompts import PromptReader
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.gateway.conftest import until
from tests.gateway.readers import DoubleTokenizers


class Counting(DoubleTokenizers):
    """How often a tokenizer was read."""

    read = 0

    async def reader(self, model: str) -> tuple[PromptReader, str]:
        self.read += 1
        return await super().reader(model)


async def test_a_tokenizer_is_read_once_however_long_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    async def opened(settings: Settings, name: str) -> object:
        nonlocal tried
        tried += 1
        if tried < 4:
            raise Unavailable("redis is away")
        return await open_index(settings, name)

    monkeypatch.setattr(enrol, "open_index", opened)
    monkeypatch.setattr(enrol, "_AGAIN_S", 0.001)
    async with Double("both", "b0") as b:
        engines = [{"name": "b0", "role": "both", "url": b.url, "model": b.model}]
        settings = Settings()
        fleet = fleet_of(FleetFile.parse({"models": {b.model: {}}, "engines": engines}), settings)
        lookup, tokenizers = Lookup(fleet, Metrics(), settings), Counting()
        enrolment = enrol.Enrolment(fleet, lookup, tokenizers, settings)
        engine = fleet.engines["b0"]
        enrolment.up(engine)
        await until(lambda: engine.enrolled, 20)
        assert (tried, tokenizers.read, enrolment._read, lookup.troubles) == (4, 1, {}, {})
        await enrolment.close()
        for namespace in lookup.namespaces.values():
            await namespace.close()
