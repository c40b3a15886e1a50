"""How true fitted coefficients are: every measured run beside the modelled one, and medians of their errors."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict
from rich import box
from rich.table import Table as Sheet

from engines.model.profile import Profile
from load.fit.closed import UNSEEN, Modelled, model
from load.fit.coefficients import Values, profiles, speeds
from load.fit.kinds import Kind
from load.fit.search import FIGURES, Errors, errors
from load.fit.table import Figures, Row

KNEE = 0.7
"""Share of time in which prefill engines are busy from which on TTFT is queueing, and a small error of speed a large
one of TTFT."""
HEADS = ("TTFT p50", "TPOT p50", "ITL p99", "req/s")


class Point(msgspec.Struct, frozen=True):
    """One measured run and what the model says of it."""

    row: Row
    kind: Kind
    use: str
    """`fitted`, `held out`, or `not fitted`."""
    modelled: Figures
    errors: Errors
    """ln(modelled / measured) of TTFT p50, TPOT p50, ITL p99, req/s."""
    busy: float
    """Share of time in which the model's prefill engines had prompts."""


class Summary(msgspec.Struct, frozen=True):
    """Errors of several points, %: medians and means of absolute ones, in the order of `FIGURES`."""

    of: str
    points: int
    medians: tuple[float, ...]
    means: tuple[float, ...]


def points(kinds: Mapping[Row, Kind], held: set[Row], values: Values, base: Profile) -> list[Point]:
    """Every row, modelled with placements that the search has not seen."""
    engines, networks = profiles(values, base), speeds(values)
    found = []
    for row, kind in kinds.items():
        modelled = model(row, engines, networks, UNSEEN)
        figures = modelled.figures
        use = "held out" if row in held else "fitted" if kind.fitted or kind is Kind.SLOW else "not fitted"
        found.append(Point(row, kind, use, figures, errors(row, figures), _busy(row, modelled, engines)))
    return found


def _busy(row: Row, modelled: Modelled, engines: Mapping[int, Profile]) -> float:
    count, size = row.setup.prefill or row.setup.decode
    profile = engines[size]
    each_s = profile.prefill_s(row.prompt) * (1.0 if row.setup.prefill else profile.mix)
    return modelled.figures.rps * modelled.computed * each_s / count


def summaries(found: Sequence[Point]) -> list[Summary]:
    """By use, and of those that count for the fit by kind; then by kind what was not fitted."""
    good = [point for point in found if point.kind.fitted]
    parts: list[tuple[str, list[Point]]] = []
    for use in ("fitted", "held out"):
        of = [point for point in good if point.use == use]
        parts += [(use, of), (f"{use}, away from the knee", [point for point in of if point.busy < KNEE])]
        parts += [(f"{use}, {kind.value}", [point for point in of if point.kind is kind]) for kind in Kind]
    parts += [(kind.value, [p for p in found if p.kind is kind]) for kind in Kind if not kind.fitted]
    return [_summary(name, of) for name, of in parts if of]


def _summary(name: str, of: Sequence[Point]) -> Summary:
    columns = [[100 * abs(error) for error in column] for column in zip(*(p.errors for p in of), strict=True)]
    return Summary(
        name, len(of), tuple(statistics.median(c) for c in columns), tuple(statistics.fmean(c) for c in columns)
    )


def said(summary: Summary) -> str:
    """One line of text."""
    figures = ", ".join(f"{head} {median:.0f} %" for head, median in zip(HEADS, summary.medians, strict=True))
    return f"{summary.of}: {figures} ({summary.points} runs)"


def as_json(found: Iterable[Point], before: Sequence[Summary], unexplained: Sequence[str]) -> dict[str, Any]:
    """Points, their medians, those of the start, and what is not explained."""
    every = list(found)
    return {
        "points": [
            {
                "experiment": p.row.experiment,
                "clients": p.row.clients,
                "kind": p.kind.value,
                "use": p.use,
                "prefill_busy": round(p.busy, 3),
                "measured": asdict(p.row.measured),
                "modelled": {name: round(value, 3) for name, value in asdict(p.modelled).items()},
                "log_errors": {name: round(error, 4) for name, error in zip(FIGURES, p.errors, strict=True)},
            }
            for p in every
        ],
        "summary": [asdict(summary) for summary in summaries(every)],
        "start": [asdict(summary) for summary in before],
        "unexplained": list(unexplained),
    }


def sheets(found: Sequence[Point], before: Sequence[Summary]) -> Iterable[Sheet]:
    """The tables for a terminal: points, then medians."""
    title = "Measured; error of the model in %, 69 is twice as much (h: held out, -: not fitted)"
    sheet = Sheet(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    sheet.add_column("run, ms", no_wrap=True)
    for name in HEADS:
        sheet.add_column(name, justify="right", no_wrap=True)
    for p in found:
        cells = zip(msgspec.structs.astuple(p.row.measured), p.errors, strict=True)
        shown = (f"{_short(value)} {100 * error:+4.0f}" for value, error in cells)
        mark = "-" if not p.kind.fitted else "h" if p.use == "held out" else ""
        sheet.add_row(f"{mark:1} {p.row.label.removeprefix('mixed_')}", *shown)
    yield sheet
    title = "Errors, %: median (mean)"
    sheet = Sheet(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    sheet.add_column("runs", no_wrap=True)
    for name in ("count", *HEADS):
        sheet.add_column(name, justify="right", no_wrap=True)
    start = [msgspec.structs.replace(summary, of=f"{summary.of}, at the start") for summary in before[:1]]
    for summary in (*summaries(found), *start):
        pairs = zip(summary.medians, summary.means, strict=True)
        sheet.add_row(summary.of, str(summary.points), *(f"{median:.0f} ({mean:.0f})" for median, mean in pairs))
    yield sheet


def _short(value: float) -> str:
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
