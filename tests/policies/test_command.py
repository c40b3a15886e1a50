"""`baton policies`: list, check, new."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from policies import sample
from policies.command import app
from policies.registry import create, names


def ran(*argv: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(argv))
    assert result.exit_code == code, result.output
    return result.output


def test_list_names_every_policy_and_what_it_does() -> None:
    rows = json.loads(ran("list", "--json"))
    assert [row["name"] for row in rows] == names()
    assert all(row["from"] == "built in" and row["what"] for row in rows)
    shown = ran("list")
    assert "least_loaded" in shown
    assert "+suffix_length" in shown


def test_check_shows_cases_and_times() -> None:
    shown = ran("check", "least_loaded")
    assert "one engine" in shown
    assert "1000" in shown
    assert "two instances decide alike" in shown


def test_check_as_json() -> None:
    report = json.loads(ran("check", "round_robin", "--json"))
    assert report["good"]
    assert [times["engines"] for times in report["times"]] == [8, 64, 256, 1000]


def test_check_of_a_bad_policy_ends_with_1() -> None:
    assert "split a request" in ran("check", "tests.policies.broken:Splits", code=1)
    report = json.loads(ran("check", "tests.policies.broken:Splits", "--json", code=1))
    assert not report["good"]


def test_check_of_no_policy_says_which_there_are() -> None:
    assert "least_loaded" in ran("check", "nothing", code=2)


def test_a_new_policy_passes_its_own_test(tmp_path: Path) -> None:
    said = ran("new", "short_queue", "--folder", str(tmp_path / "a"))
    assert "short_queue.py" in said
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path / "a", timeout=60
    )
    assert found.returncode == 0
    ran("check", str(tmp_path / "a" / "short_queue.py"))
    assert type(create(str(tmp_path / "a" / "short_queue.py"))).__name__ == "ShortQueue"


def test_the_guide_shows_what_new_writes() -> None:
    guide = Path(sample.__file__).with_name("README.md").read_text()
    assert sample.files("short_queue")["short_queue.py"] in guide


def test_new_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("precious")
    assert "exists" in ran("new", "mine", "--folder", str(tmp_path), code=2)
    assert (tmp_path / "test_mine.py").read_text() == "precious"
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize("name", ["My Policy", "../up", "a-b", "class", "9lives", "Mine", "least_loaded", "_mine", ""])
def test_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    assert "policies:" in ran("new", name, "--folder", str(tmp_path), code=2)
    assert list(tmp_path.iterdir()) == []
