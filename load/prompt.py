"""`baton load prompt`: what reading a prompt costs: rendering, tokenising, hashing."""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer import Option

from engines.tiny_model import make_tiny_model
from gateway.prompt.apis import CHAT
from gateway.prompt.body import parse
from gateway.prompt.reader import Reader, UnreadableModel
from gateway.prompt.reading import of_ids

_BLOCK = 16
_WORDS = "the of cache block prefill decode naïve 漢字 return self value error 12 3.14 {} => user said hello".split()


class _Texts:
    """Text that was never there before, of a given size."""

    def __init__(self) -> None:
        self._pick = random.Random(1)

    def fresh(self, size: int) -> str:
        made: list[str] = []
        length = 0
        while length < size:
            word = self._pick.choice(_WORDS) + str(self._pick.randrange(10**4))
            made.append(word)
            length += len(word) + 1
        return " ".join(made)[:size]


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """CPU of reading one chat request, ms, lower quartile of `rounds`. Raises `UnreadableModel`."""
    reader = Reader.load(folder)
    texts = _Texts()
    shared, long = texts.fresh(1500), texts.fresh(209_000)
    works: dict[str, Callable[[], list[dict[str, str]]]] = {
        "2k": lambda: [{"role": "user", "content": texts.fresh(2_000)}],
        "2k_shared_system": lambda: [
            {"role": "system", "content": shared},
            {"role": "user", "content": texts.fresh(500)},
        ],
        "64k": lambda: [{"role": "user", "content": texts.fresh(64_000)}],
        "220k": lambda: [{"role": "user", "content": texts.fresh(220_000)}],
        "220k_95_seen": lambda: [
            {"role": "user", "content": long},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": texts.fresh(11_000)},
        ],
    }
    return {f"prompt_cpu_ms.{name}": _cpu_ms(reader, make, rounds) for name, make in works.items()}


def _cpu_ms(reader: Reader, make: Callable[[], list[dict[str, Any]]], rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        raw = msgspec.json.encode({"model": "m", "messages": make()})
        start = time.process_time()
        fields = parse(raw)
        prompt = reader.read(CHAT, fields)
        assert prompt.ids is not None, prompt.why
        of_ids(prompt.ids, "m", _BLOCK)
        spent.append((time.process_time() - start) * 1e3)
    return round(statistics.quantiles(spent[1:], n=4)[0], 4)


def prompt(
    folder: Annotated[Path | None, Option("--tokenizer", help="Model folder. [default: a tiny one, made now]")] = None,
    rounds: Annotated[int, Option(min=5, help="Of each size.")] = 40,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure reading prompts: from the request's bytes to token ids and block hashes."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            figures = measure(folder or make_tiny_model(Path(scratch, "tiny-llama")), rounds)
    except UnreadableModel as error:
        typer.secho(f"baton load prompt: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(figures))
        return
    table = Table("prompt", "CPU, ms", title="Reading prompts", title_justify="left", box=box.SIMPLE_HEAD)
    for name, value in figures.items():
        table.add_row(name.removeprefix("prompt_cpu_ms."), f"{value:.3f}")
    Console().print(table)
