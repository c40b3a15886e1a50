"""Settings: strongest source wins, and a wrong value names where it came from."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import build
from gateway.settings import Effective, SettingsError, misspelt

FLEET = """
[gateway]
port = 9000
policy = "round_robin"
[models.m]
[[engines]]
name = "p0"
role = "prefill"
url = "http://127.0.0.1:1"
[[engines]]
name = "d0"
role = "decode"
url = "http://127.0.0.1:2"
"""


def test_command_line_beats_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_PORT", "9001")
    monkeypatch.setenv("BATON_DRAIN_S", "7")
    table = {"port": 9000, "drain_s": 5, "policy": "round_robin"}
    settings, origin = Effective.gather({"port": 9002, "host": None}, table, "f.toml")
    assert (settings.port, settings.drain_s, settings.policy, settings.host) == (9002, 7, "round_robin", "127.0.0.1")
    assert [origin[name] for name in ("port", "drain_s", "policy", "host")] == [
        "--port",
        "BATON_DRAIN_S",
        "f.toml gateway.policy",
        "default",
    ]


@pytest.mark.parametrize(
    ("flags", "table", "words"),
    [
        ({"port": 99999}, {}, "--port"),
        ({}, {"lease_margin_s": -1}, "f.toml gateway.lease_margin_s"),
        ({}, {"prot": 1}, "f.toml: gateway.prot: unknown key"),
    ],
)
def test_a_wrong_value_names_its_source(flags: dict[str, int], table: dict[str, int], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Effective.gather(flags, table, "f.toml")


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_ATTEMPTS", "lots")
    with pytest.raises(SettingsError, match="BATON_ATTEMPTS"):
        Effective.gather({}, {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no engines: give --prefill URL"),
        (["--decode", "http://x"], "no engine with role 'prefill'"),
        (["--prefill", "http://x", "--decode", "x:8000"], "not a URL"),
        (["--prefill", "http://x/v1", "--decode", "http://y"], "remove the path '/v1'"),
        (["--config", "nowhere.toml"], "nowhere.toml: No such file"),
        (["--both", "http://x", "--policy", "clever"], "policy 'clever' is not installed"),
        (["--both", "http://x", "--policy", "os:path"], "policy 'os:path'"),
        (["--both", "http://x", "--port", "99999"], "--port"),
    ],
)
def test_serve_says_what_is_wrong(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(build("serve"), ["serve", *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_print_config_shows_values_and_sources(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    result = CliRunner(env={"COLUMNS": "400"}).invoke(build("serve"), ["serve", "-c", str(path), "--print-config"])
    assert result.exit_code == 0, result.output
    port = next(line for line in result.output.splitlines() if " port " in line)
    assert "9000" in port
    assert path.name in port


def test_every_verb_has_help() -> None:
    for verb in ("up", "demo", "serve", "smoke", "double", "load"):
        result = CliRunner().invoke(build(verb), [verb, "--help"])
        assert result.exit_code == 0, verb
        assert "Usage" in result.output


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--policy", "nothing", "not installed"),
        ("--shadow-policy", "nothing", "not installed"),
        ("--policies-folder", "/nowhere/at/all", "is no folder"),
    ],
)
def test_a_policy_that_cannot_be_is_said_before_anything_starts(
    tmp_path: Path, workers: str, flag: str, value: str, words: str
) -> None:
    (path := tmp_path / "fleet.toml").write_text(FLEET)
    result = CliRunner().invoke(build("serve"), ["serve", "-c", str(path), "--workers", workers, flag, value])
    assert result.exit_code == 2
    assert words in result.output


def test_a_misspelt_variable_is_told_and_others_are_not() -> None:
    given = ["BATON_OTLP_ENDPONT", "baton_promptmode", "BATON_POLICY", "BATON_API_KEY", "BATON_GPUS", "PATH"]
    assert misspelt(given) == {
        "BATON_OTLP_ENDPONT": "BATON_OTLP_ENDPOINT",
        "BATON_PROMPTMODE": "BATON_PROMPT_MODE",
    }
