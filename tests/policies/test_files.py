"""A policy in a `.py` file is found, named and, where it is wrong, said to be wrong with file, line and mend."""

import sys
from pathlib import Path

import pytest

from policies.contract import Engine, Fleet, Request
from policies.kv_cost import KvCost
from policies.registry import UnknownPolicy, create, where

HEAD = """from policies.contract import Fleet, Placement, Request
from policies.staged import Staged

"""
FIRST = '''class First:
    """The first decode engine.

    More words.
    """

    def place(self, request: Request, fleet: Fleet) -> Placement:
        return Placement(decode=fleet.decoders[0].name, reason="first")
'''
FLEET = Fleet(engines=(Engine(name="d0", role="decode"), Engine(name="d1", role="decode")))


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(HEAD + text)
    return str(path)


def test_a_file_with_one_class_is_a_policy(tmp_path: Path) -> None:
    name = written(tmp_path, FIRST)
    assert create(name).place(Request(model="m", prompt_tokens=1), FLEET).decode == "d0"
    assert where(name) == (f"file {name}", "The first decode engine.")
    assert not where(name).built_in


def test_a_relative_path_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, FIRST)
    monkeypatch.chdir(tmp_path)
    assert type(create("mine.py")).__name__ == "First"


def test_a_file_takes_a_decider(tmp_path: Path) -> None:
    name = written(
        tmp_path, "class Mine(Staged):\n    def prefilling(self, r, e): return 0.0\n    decoding = prefilling\n"
    )
    made = create(f"{name}+never")
    assert made.place(Request(model="m", prompt_tokens=1), FLEET).reason


def test_policy_names_one_of_several(tmp_path: Path) -> None:
    second = FIRST.replace("First", "Second").replace("[0]", "[1]")
    name = written(tmp_path, f'{FIRST}\n{second}\nPOLICY = "Second"\n')
    assert create(name).place(Request(model="m", prompt_tokens=1), FLEET).decode == "d1"


HASTY = """from policies.joint import Joint

class Hasty(Joint):
    slowed = 0.0

    def place(self, request, fleet):
        placement = super().place(request, fleet)
        placement.scores["asked"] = 1.0
        return placement
"""


def test_a_file_may_build_on_joint(tmp_path: Path) -> None:
    p = Engine(name="p", role="prefill", prefill_s=2.5, kv_tokens=1_000_000)
    d = Engine(name="d", role="decode", decode_tokens=950_000, decode_requests=40, kv_tokens=1_000_000)
    ask = Request(model="m", prompt_tokens=4000), Fleet(engines=(p, d), arrivals_per_s=1.0)
    mine = create(written(tmp_path, HASTY), 1).place(*ask)
    assert create("joint", 1).place(*ask).prefill == "p"
    assert mine.prefill is None, "it does not mind slowing decodes"
    assert mine.scores["asked"] == 1.0


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("x = (\n", 4, "was never closed"),
        ("import nothing_of_that_name\n", 4, "ModuleNotFoundError"),
        ("\nraise SystemExit(2)\n", 5, "must run by itself"),
        ("x = 1\n", 1, "no class with a method place"),
        (FIRST + FIRST.replace("First", "Second"), 12, 'POLICY = "First"'),
        (FIRST + 'POLICY = "Third"\n', 1, "'Third'"),
        ("class A:\n    def place(self, request): ...\n", 5, "make it place(self, request, fleet)"),
        ("class A:\n    async def place(self, request, fleet): ...\n", 5, "write `def place`"),
        ("class A:\n    def __init__(self): 1 / 0\n    def place(self, request, fleet): ...\n", 5, "without arguments"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    name = written(tmp_path, text)
    with pytest.raises(UnknownPolicy) as caught:
        create(name)
    assert str(caught.value).startswith(f"{name}:{line}: ")
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownPolicy, match="No such file"):
        create(str(tmp_path / "mine.py"))


def test_a_file_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    create(written(tmp_path, FIRST, "kept.py"))
    before = sys.modules["baton_policy_files.kept"]
    with pytest.raises(UnknownPolicy):
        create(written(tmp_path, "1 / 0", "kept.py"))
    assert sys.modules["baton_policy_files.kept"] is before


def test_where_the_others_come_from() -> None:
    assert where("kv_cost").built_in
    assert where("kv_cost+never").summary == (KvCost.__doc__ or "").partition("\n")[0]
    assert where("policies.kv_cost:KvCost").built_in
    assert where("tests.policies.broken:Splits") == (
        "module tests.policies.broken",
        "Splits even what must stay whole.",
    )
    with pytest.raises(UnknownPolicy, match=r"a \.py file"):
        where("nothing")


def test_a_seed_is_passed_on_to_who_takes_one(tmp_path: Path) -> None:
    request = Request(model="m", prompt_tokens=1)
    chosen = [[create("random", seed=5).place(request, FLEET).decode for _ in range(3)] for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert create(written(tmp_path, FIRST), seed=5)
