"""A fleet file that cannot be used says which key, and what to do."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.fleet import Fleet, FleetError, Role

GOOD = """
[models.m]
path = "org/m"

[[engines]]
name = "p0"
role = "prefill"
port = 8101
nixl_port = 8201

[[engines]]
name = "d0"
role = "decode"
url = "http://10.0.0.1:8102"
"""

BAD = {
    # change to GOOD: (what is replaced, by what), then the key and the mend that the error names
    "unknown key of an engine": (
        "port = 8101",
        "prot = 8101",
        "engines.p0.prot",
        "unknown key: remove it or use one of",
    ),
    "unknown table": ("[models.m]", "[modles.x]\n[models.m]", "modles", "unknown key"),
    "unknown key of a model": ('path = "org/m"', 'path = "m"\nlease = 3', "models.m.lease", "lease_s"),
    "port used twice": ("nixl_port = 8201", "nixl_port = 8101", "engines.p0.nixl_port", "taken by engines.p0.port"),
    "role without engines": ('role = "decode"', 'role = "prefill"', "models.m", "no engine with role 'decode'"),
    "unknown role": ('role = "decode"', 'role = "decoder"', "engines.d0.role", "'prefill', 'decode' or 'both'"),
    "no role": ('role = "decode"', "", "engines.d0.role", "missing: add it"),
    "unknown model": ('role = "decode"', 'role = "decode"\nmodel = "n"', "engines.d0.model", "add [models.n]"),
    "no model": ('[models.m]\npath = "org/m"', "", "models", "add a table such as [models.qwen]"),
    "model nobody serves": ("[models.m]", "[models.other]\n[models.m]", "engines.p0.model", "say which of"),
    "url and port": ("port = 8101", 'port = 8101\nurl = "http://h:1"', "engines.p0", "not both"),
    "neither url nor port": ("port = 8101", "", "engines.p0", "not both"),
    "url without a scheme": ('"http://10.0.0.1:8102"', '"10.0.0.1:8102"', "engines.d0.url", "give http://host:port"),
    "url with a path": (":8102", ":8102/v1", "engines.d0.url", "remove the path '/v1'"),
    "url twice": (
        "port = 8101\nnixl_port = 8201",
        'url = "http://10.0.0.1:8102/"',
        "engines.d0",
        "engines.p0 already",
    ),
    "GPU below 0": ("port = 8101", "port = 8101\ngpus = [-1]", "engines.p0.gpus.0", "greater than or equal to 0"),
    "name twice": ('"d0"', '"p0"', "engines", "give each its own name"),
    "unknown host": ("port = 8101", 'port = 8101\nhost = "h2"', "engines.p0.host", "add [hosts.h2]"),
    "port too high": ("port = 8101", "port = 81010", "engines.p0.port", "65536"),
    "tensor parallelism without its GPUs": ("port = 8101", "port = 8101\ngpus = [0, 1, 2]\ntp = 2", "engines.p0", "tp"),
    "not TOML": ("[models.m]", "[models.m", "fleet.toml", "not TOML"),
}


def load(folder: Path, text: str) -> Fleet:
    """Read a fleet file of this text."""
    file = folder / "fleet.toml"
    file.write_text(text)
    return Fleet.load(file)


def test_good_file(tmp_path: Path) -> None:
    fleet = load(tmp_path, GOOD)
    assert [(e.name, e.role, e.model, e.managed) for e in fleet.engines] == [
        ("p0", Role.PREFILL, "m", True),
        ("d0", Role.DECODE, "m", False),
    ]
    assert [fleet.url(e) for e in fleet.engines] == ["http://127.0.0.1:8101", "http://10.0.0.1:8102"]
    assert fleet.models["m"].path == "org/m"


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_key_and_the_mend(tmp_path: Path, case: str) -> None:
    old, new, key, mend = BAD[case]
    assert old in GOOD
    with pytest.raises(FleetError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert key in str(error.value)
    assert mend in str(error.value)
    assert "fleet.toml" in str(error.value)


def test_tensor_parallel_ranks_take_a_port_each(tmp_path: Path) -> None:
    text = GOOD.replace("port = 8101\nnixl_port = 8201", "port = 8202\nnixl_port = 8201\ntp = 2")
    with pytest.raises(FleetError, match=r"engines\.p0\.nixl_port: port 8202 is taken by engines\.p0\.port"):
        load(tmp_path, text)


def test_same_port_on_two_hosts_is_fine(tmp_path: Path) -> None:
    text = (
        GOOD.replace('url = "http://10.0.0.1:8102"', 'port = 8101\nhost = "h2"') + '[hosts.h2]\naddress = "10.0.0.2"\n'
    )
    fleet = load(tmp_path, text)
    assert [fleet.url(e) for e in fleet.engines] == ["http://127.0.0.1:8101", "http://10.0.0.2:8101"]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="give an existing fleet file"):
        Fleet.load(tmp_path / "none.toml")


def test_settings_of_the_gateway_are_kept(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD + "[gateway]\nport = 9\n").gateway == {"port": 9}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)  # a busy machine is no failure
@given(path=TEXT, args=st.lists(TEXT, max_size=3), env=st.dictionaries(TEXT, TEXT, max_size=3))
def test_written_file_reads_back_equal(path: str, args: list[str], env: dict[str, str]) -> None:
    raw = tomllib.loads(GOOD)
    raw["models"]["m"] |= {"path": path or "m", "args": args, "env": env, "lease_s": 12.5}
    raw["engines"][0] |= {"args": args, "env": env, "gpus": [0, 1], "tp": 2}
    fleet = Fleet.parse(raw)
    assert Fleet.parse(tomllib.loads(fleet.to_toml())) == fleet
