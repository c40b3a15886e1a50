"""Measurements of closed-loop runs: a CSV with one row for each configuration and number of clients.

The configuration is read from the experiment's name:

    name    = "mixed_" ( "baseline_" engines | layout "_" ["p"] engines "-" ["d"] engines )
    engines = count "xtp" tensor-parallel size          2xtp4: two engines on 4 GPUs each
    layout  = "pd" | "pack"                             prefill and decode engines on one host
            | "spread_" network                         on two hosts, joined by that network

`mixed_baseline_2xtp4` is two collocated engines; `mixed_pd_p1xtp2-d3xtp2` one prefill and three decode engines.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

_NAME = re.compile(
    r"mixed_(?:baseline_(?P<both>\d+)xtp(?P<both_tp>\d+)"
    r"|(?:pd|pack|spread_(?P<network>[a-z0-9]+))_p?(?P<p>\d+)xtp(?P<p_tp>\d+)-d?(?P<d>\d+)xtp(?P<d_tp>\d+))"
)
_COUNTS = ("concurrency", "requests")
_NUMBERS = ("duration_s", "request_throughput", "output_throughput", "total_token_throughput")
_TIMES = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "median_itl_ms", "p99_itl_ms")
COLUMNS = ("experiment", *_COUNTS, *_NUMBERS, *_TIMES)
"""Those that are read; others may be there."""


class BadTable(ValueError):
    """The file is not such a table; the message names the line and the mend."""


class Setup(msgspec.Struct, frozen=True):
    """Engines: how many, and on how many GPUs each."""

    prefill: tuple[int, int] | None
    """Count and tensor-parallel size; None: the others are collocated."""
    decode: tuple[int, int]
    network: str = ""
    """Between the hosts of prefill and decode; empty: they are on one."""

    @property
    def sizes(self) -> set[int]:
        """Tensor-parallel sizes."""
        return {self.decode[1], *(self.prefill[1:] if self.prefill else ())}


class Figures(msgspec.Struct, frozen=True):
    """What a run came to."""

    ttft_p50_ms: float
    tpot_p50_ms: float
    itl_p99_ms: float
    rps: float


class Row(msgspec.Struct, frozen=True):
    """One measured run."""

    line: int
    experiment: str
    setup: Setup
    clients: int
    """Each sends its next request as soon as its last has ended."""
    requests: int
    prompt: int
    """Tokens."""
    answer: int
    """Tokens."""
    duration_s: float
    measured: Figures
    ttft_p99_ms: float
    itl_p50_ms: float
    earlier: tuple[int, ...] = ()
    """Requests of each earlier run of the experiment, on the same engines: those with fewer clients."""

    @property
    def label(self) -> str:
        return f"{self.experiment} x{self.clients}"


class Table(msgspec.Struct, frozen=True):
    """The rows that can be modelled, and why the others cannot."""

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]


def setup(name: str) -> Setup:
    """The configuration that an experiment's name stands for. Raises ValueError, which says what was wanted."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not as in mixed_baseline_2xtp4 or mixed_pd_p1xtp2-d3xtp2")
    part = found.groupdict()
    if part["both"]:
        made = Setup(None, (int(part["both"]), int(part["both_tp"])))
    else:
        prefill, decode = (int(part["p"]), int(part["p_tp"])), (int(part["d"]), int(part["d_tp"]))
        made = Setup(prefill, decode, part["network"] or "")
    if not all((*made.decode, *(made.prefill or ()))):
        raise ValueError(f"{name!r}: no engine, or one without a GPU")
    return made


def read(path: Path) -> Table:
    """Raises `BadTable`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadTable(f"{path}: {error}") from None
    return parse(text.splitlines(), path)


def parse(lines: Iterable[str], where: object = "table") -> Table:
    """The same from lines. Raises `BadTable`."""
    reader = csv.DictReader(lines)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise BadTable(f"{where}:1: no column {', '.join(missing)}: the header must have {','.join(COLUMNS)}")
    rows: list[Row] = []
    left_out: list[str] = []
    runs: dict[tuple[object, ...], Row] = {}
    for cells in reader:
        line, name = reader.line_num, cells["experiment"] or ""
        try:
            made = setup(name)
        except ValueError as error:
            left_out.append(f"line {line}: {error}")
            continue
        row = _row(cells, line, made, f"{where}:{line}")
        twin = runs.setdefault((row.setup, row.clients, row.measured, row.ttft_p99_ms), row)
        if twin is row:
            rows.append(row)
        else:
            left_out.append(f"line {line}: {row.label} is the run of line {twin.line}, {twin.label}, once more")
    if not rows:
        why = left_out[0] if left_out else "there is no row below the header"
        raise BadTable(f"{where}: nothing to fit: {why}")
    return Table(tuple(replace(row, earlier=_earlier(row, rows)) for row in rows), tuple(left_out))


def _earlier(row: Row, rows: Iterable[Row]) -> tuple[int, ...]:
    fewer = [other for other in rows if other.experiment == row.experiment and other.clients < row.clients]
    return tuple(other.requests for other in sorted(fewer, key=lambda other: other.clients))


def _row(cells: dict[str, str], line: int, made: Setup, where: str) -> Row:
    value = {column: _number(cells[column], column, where) for column in (*_NUMBERS, *_TIMES)}
    clients, requests = (_count(cells[column], column, where) for column in _COUNTS)
    each = value["duration_s"] / requests
    answer = round(value["output_throughput"] * each)
    prompt = round((value["total_token_throughput"] - value["output_throughput"]) * each)
    if answer < 2 or prompt < 1:
        raise BadTable(
            f"{where}: its throughputs tell of {prompt} tokens in and {answer} out of each request, not of 1 and 2 "
            "at least: mend output_throughput and total_token_throughput, tokens a second"
        )
    return Row(
        line=line,
        experiment=cells["experiment"],
        setup=made,
        clients=clients,
        requests=requests,
        prompt=prompt,
        answer=answer,
        duration_s=value["duration_s"],
        measured=Figures(
            value["median_ttft_ms"], value["median_tpot_ms"], value["p99_itl_ms"], value["request_throughput"]
        ),
        ttft_p99_ms=value["p99_ttft_ms"],
        itl_p50_ms=value["median_itl_ms"],
    )


def _number(text: str | None, column: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise BadTable(f"{where}: {column} is {text or 'empty'}: write a number above 0")
    return value


def _count(text: str | None, column: str, where: str) -> int:
    value = _number(text, column, where)
    if value != int(value):
        raise BadTable(f"{where}: {column} is {text}: write a whole number")
    return int(value)
