"""Compiled modules stand for sources only as long as those are what was compiled."""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest

from gateway.native import loader
from gateway.native.build import HOT, BuildError, build

SOURCE = """
class Sum:
    def __init__(self) -> None:
        self.value = 0

    def add(self, n: int) -> int:
        self.value += n
        return self.value
"""
USE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from gateway.native import loader
files, why = loader.stands(Path(sys.argv[2]), Path(sys.argv[1]), ["room"])
sys.meta_path.insert(0, loader.Finder(files))
from room.sums import Sum
import room.sums
total = Sum()
total.add(2)
print(Path(room.sums.__file__).suffix, total.add(3), why)
"""

DECISIONS = """
import gateway, random, sys
from policies import corpus, minimum
from policies.registry import create
policy = create("joint", 5)
for case in corpus.cases():
    for request, fleet in case.asks:
        print(case.name, policy.place(request, fleet))
print(minimum.__file__.endswith(".so"), file=sys.stderr)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package with one module."""
    room = tmp_path / "root" / "room"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    (room / "sums.py").write_text(SOURCE)
    return room.parent


def manifest(root: Path, **changes: object) -> Path:
    """A build of `root` as `stands` sees it."""
    built = root.parent / "built"
    built.mkdir(exist_ok=True)
    right = {
        "suffix": EXTENSION_SUFFIXES[0],
        "digest": loader.digest(root, ["room"]),
        "files": {"room.sums": "sums.so"},
    }
    (built / "manifest.json").write_text(json.dumps({**right, **changes}))
    return built


def test_a_build_of_these_sources_stands(root: Path) -> None:
    built = manifest(root)
    assert loader.stands(built, root, ["room"]) == ({"room.sums": str(built / "sums.so")}, "")


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename"])
def test_sources_that_changed_are_interpreted(root: Path, change: str) -> None:
    room = root / "room"
    (room / "more.py").write_text("ONE = 1\n")
    built = manifest(root)
    match change:
        case "edit":
            (room / "more.py").write_text("ONE = 2\n")
        case "add":
            (room / "new.py").touch()
        case "remove":
            (room / "more.py").unlink()
        case "rename":
            (room / "more.py").rename(room / "other.py")
    assert loader.stands(built, root, ["room"]) == ({}, "sources changed since they were compiled")


def test_a_build_for_another_python_is_not_used(root: Path) -> None:
    assert (
        loader.stands(manifest(root, suffix=".cpython-39.so"), root, ["room"])[1]
        == "it was compiled for another Python"
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', "\xff"])
def test_a_broken_manifest_is_no_build(root: Path, text: str) -> None:
    built = manifest(root)
    (built / "manifest.json").write_text(text, encoding="latin-1")
    files, why = loader.stands(built, root, ["room"])
    assert not files
    assert "cannot be read" in why


def test_no_build_at_all(tmp_path: Path) -> None:
    assert loader.stands(tmp_path, tmp_path, []) == ({}, "nothing was compiled here")


def test_every_hot_module_exists() -> None:
    assert all(find_spec(name) for name in HOT)


@pytest.mark.parametrize("name", HOT)
def test_nothing_is_awaited_while_an_exception_is_handled(name: str) -> None:
    """mypyc's coroutines have no exception state of their own: what they handle while they wait stays with the thread
    for ever, and every exception after it has it as its context."""
    tree = ast.parse((loader.ROOT / name.replace(".", "/")).with_suffix(".py").read_text())
    for tried in (node for node in ast.walk(tree) if isinstance(node, ast.Try)):
        for handling in [*(handler.body for handler in tried.handlers), tried.finalbody]:
            for node in handling:
                waits = [at.lineno for at in ast.walk(node) if isinstance(at, ast.Await | ast.Yield | ast.YieldFrom)]
                assert not waits, f"{name}: awaits at line {waits[0]}"


@pytest.mark.parametrize("name", HOT)
def test_only_clocks_are_entered_asynchronously(name: str) -> None:
    """An `__aexit__` that waits would do so while an exception is handled; that of `asyncio.timeout` never does."""
    tree = ast.parse((loader.ROOT / name.replace(".", "/")).with_suffix(".py").read_text())
    entered = [with_ for with_ in ast.walk(tree) if isinstance(with_, ast.AsyncWith)]
    clocks = ("asyncio.timeout(", "asyncio.timeout_at(", "scope")
    assert all(ast.unparse(item).startswith(clocks) for with_ in entered for item in with_.items)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler here")
def test_compiled_where_it_stands_and_interpreted_where_it_does_not(root: Path, tmp_path: Path) -> None:
    built = tmp_path / "built"

    def use() -> str:
        command = [sys.executable, "-c", USE, str(root), str(built)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    build(root, ["room.sums"], ["room"], built)
    assert use() == ".so 5"
    (root / "room" / "sums.py").write_text(SOURCE.replace("+= n", "+= 2 * n"))
    assert use() == ".py 10 sources changed since they were compiled"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler here")
def test_what_cannot_be_compiled_leaves_the_last_build_and_says_why(root: Path, tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    (built / "manifest.json").write_text("{}")
    (root / "room" / "sums.py").write_text("def wrong() -> int:\n    return 'no'\n")
    with pytest.raises(BuildError, match="Incompatible return value"):
        build(root, ["room.sums"], ["room"], built)
    assert (built / "manifest.json").read_text() == "{}"


@pytest.mark.skipif(bool(loader.stands(loader.BUILT, loader.ROOT)[1]), reason="nothing is compiled here")
def test_joint_decides_alike_compiled_and_interpreted() -> None:
    def run(native: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", DECISIONS],
            env={**os.environ, "BATON_NATIVE": native},
            capture_output=True,
            text=True,
        )
        return done.stdout, done.stderr.strip()

    (compiled, one), (interpreted, other) = run("1"), run("0")
    assert (one, other) == ("True", "False")
    assert compiled == interpreted
    assert len(compiled) > 100_000
