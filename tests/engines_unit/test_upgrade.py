"""`baton engines upgrade` from the outside, over stubs of vLLM: its plan, its way and its ends, a crash among them."""

import json
import signal
import subprocess
from collections.abc import Callable

from tests.engines_unit.baton import START_S
from tests.engines_unit.engines import RULES, Engines
from tests.engines_unit.until import until

Start = Callable[..., Engines]

PD = {"p0": "prefill", "d1": "decode"}
NEW = 'args = ["--seed", "7"]'


def seeds(it: Engines, p0: str = "p0") -> dict[str, bool]:
    """Which engines run as in the new file, by their command lines; what p0 calls itself."""
    return {name: "--seed" in it.starts(called)[-1]["argv"] for name, called in (("p0", p0), ("d1", "d1"))}


def test_halted_killed_and_gone_on_with(start: Start) -> None:
    it = start()
    it.serving()
    old = it.file.read_text()
    new = it.folder / "new.toml"
    rules = RULES.replace("watch_s = 0", "watch_s = 0.1")
    new.write_text(it.text(PD, rules=rules, calls={"p0": "late"}, p0=NEW, d1=NEW))

    planned = it.ask("upgrade", str(new), "--dry-run", "--json")
    assert json.loads(planned.stdout) == {
        "plan": [{"do": "replace", "engines": ["p0"]}, {"do": "replace", "engines": ["d1"]}],
        "warnings": ["d1 is the only engine that decodes: requests wait for it, or fail (engine_wait_s)"],
    }
    assert "1. replace p0" in it.ask("upgrade", str(new), "--dry-run").stdout

    command, env = it.command("upgrade", str(new))
    with (it.folder / "told").open("wb") as told:
        asked = subprocess.Popen(command, env=env, stdout=told, stderr=told)
    until(lambda: "p0: loading weights" in (it.folder / "told").read_text(), START_S)
    assert "another upgrade runs here" in it.ask("upgrade", str(new)).stderr
    asked.send_signal(signal.SIGINT)
    until(lambda: "stops after what it is at" in (it.folder / "told").read_text(), START_S)
    it.go("late")
    assert asked.wait(START_S) == 130
    said = (it.folder / "told").read_text()
    assert "[1/2] replace p0 (prefill)" in said and "p0: nothing came to it while it was watched" in said
    assert f"stopped: p0 is as in {new}, d1 is as before; the same command goes on" in said
    assert seeds(it, "late") == {"p0": True, "d1": False} and it.file.read_text() == old

    it.look()
    it.process.kill()
    assert it.ends() == -signal.SIGKILL
    again = start()
    again.taken = it.taken
    again.shows(f"p0 as {new} says: `baton engines upgrade {new}` goes on from there")
    again.serving()
    assert seeds(again, "late") == {"p0": True, "d1": False}
    done = again.ask("upgrade", str(new), "--watch-s", "0", "--json")
    assert json.loads(done.stdout) == {"done": ["d1"], "left": [], "back": [], "why": ""}, done.stderr
    assert seeds(again, "late") == {"p0": True, "d1": True}
    assert again.file.read_text() == new.read_text()
    assert again.file.with_name("fleet.toml.before").read_text() == old
    assert not (again.folder / "state" / "upgrade.json").exists()
    assert again.asked_to_end() == 0


def test_one_that_never_gets_ready_is_taken_back_with_those_before_it(start: Start) -> None:
    it = start()
    it.serving()
    old = it.file.read_text()
    new = it.folder / "new.toml"
    roles = {"p2": "prefill", **PD}
    new.write_text(it.text(roles, rules=RULES + "start_s = 0.5\n", calls={"d1": "never"}, p0=NEW, d1=NEW))
    it.go("p2")
    asked = it.ask("upgrade", str(new), "--json")
    assert asked.returncode == 1, asked.stderr
    found = json.loads(asked.stdout)
    assert found["why"].startswith("d1 is not ready after 0.5 s, last seen loading weights: raise supervisor.start_s")
    assert (found["done"], found["left"], found["back"]) == ([], ["p2", "p0", "d1"], ["d1", "p0"])
    assert "d1, p0 run as before" in found["why"]
    assert {name: engine["phase"] for name, engine in it.status().items()} == {"p0": "ready", "d1": "ready"}
    assert seeds(it) == {"p0": False, "d1": False}
    assert it.file.read_text() == old and not (it.folder / "state" / "upgrade.json").exists()
    new.write_text(new.read_text().replace("[models.stub]", '[models.stub]\npath = "/nowhere"'))
    assert "models.stub.path: no config.json in /nowhere: correct it" in it.ask("upgrade", str(new)).stderr
    assert "no such file" in it.ask("upgrade", str(it.folder / "none")).stderr.lower()
    assert it.asked_to_end() == 0
