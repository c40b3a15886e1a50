"""What the README shows works as written."""

import re
import tomllib
from pathlib import Path

from engines.fleet import Fleet as FleetFile
from gateway.settings import Effective
from policies.contract import Engine, Fleet, Policy, Request, check

README = Path(__file__).parent.parent / "README.md"


def block(language: str) -> str:
    """The first block of code in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found, language
    return found[1]


def test_its_fleet_file_is_one() -> None:
    raw = tomllib.loads(block("toml"))
    fleet = FleetFile.parse(raw)
    assert {engine.role for engine in fleet.engines} == {"prefill", "decode"}
    assert Effective.gather({}, fleet.gateway).settings.policy == "least_loaded"
    assert FleetFile.parse(tomllib.loads(fleet.to_toml())) == fleet


def test_its_policy_is_one() -> None:
    names: dict[str, type[Policy]] = {}
    exec(block("python"), names)
    policy = names["ShortQueue"]()
    fleet = Fleet(engines=(Engine(name="p", role="prefill"), Engine(name="d", role="decode")))
    for whole in ("", "n"):
        request = Request(model="m", prompt_tokens=9, whole=whole)
        assert check(policy.place(request, fleet), request, fleet).prefill == (None if whole else "p")


def test_its_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
