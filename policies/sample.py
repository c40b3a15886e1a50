"""What `baton policies new` writes."""

from string import Template

POLICY = Template('''"""`$name`: the least to prefill, the fewest requests to decode."""

from policies.contract import Engine, Request
from policies.staged import Staged


class $title(Staged):
    """Short queues first, what is cached counted."""

    reason = "short queue"  # a person reads it, and it is a metric's label: no numbers in it

    def prefilling(self, request: Request, engine: Engine) -> float:  # more is better
        new = max(0, request.prompt_tokens - engine.cached_tokens)  # tokens that it would have to compute
        return -float(engine.prefill_tokens + new)

    def decoding(self, request: Request, engine: Engine) -> float:  # whole requests, and those of engines that do both
        return -float(engine.decode_requests)
''')

TEST = Template('''"""`$name` does what it is for, and copes with whatever a fleet may look like."""

from functools import partial
from pathlib import Path

from policies.check import examine
from policies.contract import Engine, Fleet, Request
from policies.registry import create

FILE = str(Path(__file__).with_name("$name.py"))


def test_it_takes_the_shortest_queues() -> None:
    engines = (
        Engine(name="p0", role="prefill", prefill_tokens=9000),
        Engine(name="p1", role="prefill"),
        Engine(name="d0", role="decode"),
        Engine(name="d1", role="decode", decode_requests=5),
    )
    placement = create(FILE).place(Request(model="m", prompt_tokens=4000), Fleet(engines=engines))
    assert (placement.prefill, placement.decode) == ("p1", "d0")


def test_it_passes_its_examination() -> None:
    assert examine(partial(create, FILE)).errors == []
''')


def files(name: str) -> dict[str, str]:
    """The texts of a new policy's files, by file name."""
    title = "".join(part.capitalize() for part in name.split("_"))
    words = {"name": name, "title": title or "Mine"}
    return {f"{name}.py": POLICY.substitute(words), f"test_{name}.py": TEST.substitute(words)}
