"""What a fleet file says of an engine reaches policies, whether the gateway reads it or a supervisor registers it."""

from engines.fleet import Fleet as FleetFile
from engines.model.profile import load
from engines.record import of_engine
from gateway.fleet.engine import Engine
from gateway.fleet.registry import wanted_of
from gateway.fleet.wanted import of_file
from gateway.index.sight import Sight
from gateway.prompt.reading import Reading
from gateway.wire.pool import Limits

FILE = FleetFile.parse(
    {
        "models": {"m": {"path": "org/model", "lease_s": 40.0}},
        "hosts": {"far": {"address": "10.0.0.9"}},
        "engines": [
            {
                "name": "d0",
                "role": "both",
                "host": "far",
                "port": 8101,
                "profile": "gpt-oss-120b-h100-tp4",
                "cost": 2.5,
                "drain": True,
            },
        ],
    }
)


def test_both_ways_tell_the_same() -> None:
    (listed,) = of_file(FILE)
    assert wanted_of(of_engine(FILE, FILE.engines[0])) == listed


def test_policies_see_its_speed_and_its_cost() -> None:
    (wanted,) = of_file(FILE)
    seen = Engine.of(wanted, Limits()).view(Sight(Reading(10, b"", 1)), "both")
    assert (seen.cost, seen.speed) == (2.5, load("gpt-oss-120b-h100-tp4").speed)
