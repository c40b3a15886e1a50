"""Upgrades under load: a good one costs no request, one that serves worse is taken back, and costs none either."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engines.upgrade import Upgrade
from gateway.index.embedded import Embedded
from tests.ports import fresh_ports
from tests.registry.hosts import Host, Load, fleet, gateway, host, until, up

pytestmark = pytest.mark.storm

ROLES = {"p0": "prefill", "d0": "decode", "d1": "decode"}
PROFILE = {"DOUBLE_PROFILE": "gpt-oss-120b-h100-tp4"}
SEED = {"args": ["--seed", "1"]}


def bad(**faults: float) -> dict[str, Any]:
    """An engine with faults."""
    return {"env": {"DOUBLE_FAULTS": json.dumps(faults)}}


@dataclass
class Upgraded:
    """A host behind a gateway, under load."""

    gpu1: Host
    load: Load
    file: Path
    ports: Any
    taken: dict[str, dict[str, int]]
    upgrade: Upgrade
    said: list[str] = field(default_factory=list)

    async def to(self, rules: Mapping[str, float], **changed: Any) -> dict[str, Any]:
        """Upgrade to these engines."""
        text = fleet(self.ports, self.taken, ROLES, env=PROFILE, **changed).to_toml()
        return await self.upgrade.run({"path": "new.toml", "text": text, "rules": rules}, self.said.append)

    def starts(self) -> dict[str, int]:
        return {name: service.starts for name, service in self.gpu1.supervisor.services.items()}


@asynccontextmanager
async def running(redis: Embedded, secret: Path, tmp_path: Path) -> AsyncIterator[Upgraded]:
    """Requests all the time; in the end all engines are up, and no request was lost."""
    ports, file = fresh_ports(), tmp_path / "fleet.toml"
    taken: dict[str, dict[str, int]] = {}
    first = fleet(ports, taken, ROLES, env=PROFILE)
    file.write_text(first.to_toml())
    async with gateway(redis, secret) as one, host(first, tmp_path, redis.url) as gpu1:
        await until(lambda: up(one) == set(ROLES))
        load = Load(one.http)
        async with load.running(clients=3):
            await load.more(40)
            yield Upgraded(gpu1, load, file, ports, taken, Upgrade(gpu1.keeper, file, tmp_path / "upgrade.json"))
            await load.more(20)
        assert load.bad == []
        await until(lambda: up(one) == set(ROLES))


async def test_a_good_one_and_one_with_errors(redis: Embedded, secret: Path, tmp_path: Path) -> None:
    async with running(redis, secret, tmp_path) as it:
        # Doubles share the machine with all else here: what a start takes of it is no slowness of theirs.
        outcome = await it.to({"watch_s": 0.5, "watch_ttft": 1000, "watch_itl": 1000}, p0=SEED, d0=SEED)
        assert outcome == {"done": ("p0", "d0"), "left": (), "back": (), "why": ""}, it.said
        assert any(line.startswith("d0: ") and " 0 errors; TTFT" in line for line in it.said), it.said
        good = it.file.read_text()
        assert "--seed" in good

        outcome = await it.to({"watch_s": 30}, p0=SEED, d0=SEED, d1=bad(error_rate=1.0))
        assert "d1 serves worse" in outcome["why"] and "answers were errors, 0.0% before" in outcome["why"]
        assert (outcome["done"], outcome["back"], outcome["left"]) == ((), ("d1",), ("d1",))
        assert it.file.read_text() == good
        assert it.starts() == {"p0": 2, "d0": 2, "d1": 3}
