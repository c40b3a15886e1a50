"""What a table holds that no sane model explains, found from its figures alone."""

from collections.abc import Iterable, Mapping

from load.fit.kinds import STALL, Kind
from load.fit.table import Row

_COLD = 4.0
"""TTFT p99 over that of the same engines with more clients: above this the first requests found them cold."""
_APART = 1.2
"""TPOT of the same decode engines with the same clients: above this ratio two runs contradict each other."""


def doubts(kinds: Mapping[Row, Kind], chunk_tokens: int) -> list[str]:
    """One sentence each."""
    return [*_stalls(kinds), *_prefills(kinds, chunk_tokens), *_contradictions(kinds), *_cold(kinds), *_networks(kinds)]


def _stalls(kinds: Mapping[Row, Kind]) -> Iterable[str]:
    stalled: dict[str, list[Row]] = {}
    for row, kind in kinds.items():
        alike = kind in (Kind.STALLED, Kind.UNLIKE)
        if alike and row.measured.itl_p99_ms > STALL * row.itl_p50_ms:
            stalled.setdefault(row.experiment, []).append(row)
    for experiment, rows in stalled.items():
        clients = ", ".join(str(row.clients) for row in rows)
        pauses = ", ".join(f"{row.measured.itl_p99_ms:.0f}" for row in rows)
        yield (
            f"{experiment}, {clients} clients: ITL p99 {pauses} ms on engines that only decode: pauses as long as "
            "a prefill, as if they computed prompts again (pulls that failed or came too late?)"
        )


def _prefills(kinds: Mapping[Row, Kind], chunk_tokens: int) -> Iterable[str]:
    """Bounds on how long one prompt's prefill can have taken, by tensor-parallel size."""
    least: dict[int, tuple[float, Row]] = {}
    most: dict[int, tuple[float, Row]] = {}
    burst: dict[int, tuple[float, Row]] = {}
    for row, kind in kinds.items():
        if kind is Kind.COLLOCATED:
            # A step computes at most `chunk_tokens` tokens of prompts.
            value = (row.measured.itl_p99_ms - row.itl_p50_ms) * row.prompt / chunk_tokens
            least[row.setup.decode[1]] = max(least.get(row.setup.decode[1], (0.0, row)), (value, row), key=_first)
        elif kind is Kind.SPLIT and row.setup.prefill:
            count, size = row.setup.prefill
            # The last prompt was there before its answer; those of earlier runs may have been cached.
            fresh = row.requests - max(row.earlier, default=0)
            whole = (1e3 * row.duration_s - row.measured.tpot_p50_ms * (row.answer - 1)) * count / max(1, fresh)
            most[size] = min(most.get(size, (whole, row)), (whole, row), key=_first)
            if not row.earlier:  # one in a hundred may have come later than the p99
                first = row.ttft_p99_ms * count / max(1.0, row.clients - row.requests / 100)
                burst[size] = min(burst.get(size, (first, row)), (first, row), key=_first)
    for size in sorted(least.keys() & most.keys() & burst.keys()):
        (low, collocated), (high, split), (higher, started) = least[size], most[size], burst[size]
        if min(high, higher) < low:
            yield (
                f"TP{size}, a prefill of {split.prompt} tokens: {collocated.label} says {low:.0f} ms at least (its "
                f"pauses, if a step takes {chunk_tokens} tokens at most), {split.label} at most {high:.0f} (all were "
                f"done in its time), and {started.label} at most {higher:.0f} (its first burst, by TTFT p99): "
                "prompts were cached there, or steps are larger, or mixed ones far slower"
            )


def _contradictions(kinds: Mapping[Row, Kind]) -> Iterable[str]:
    seen: dict[tuple[tuple[int, int], int], list[Row]] = {}
    for row, kind in kinds.items():
        if kind is Kind.SPLIT:
            seen.setdefault((row.setup.decode, row.clients), []).append(row)
    for (decode, clients), rows in seen.items():
        low = min(rows, key=lambda row: row.measured.tpot_p50_ms)
        high = max(rows, key=lambda row: row.measured.tpot_p50_ms)
        if high.measured.tpot_p50_ms > _APART * low.measured.tpot_p50_ms and high.measured.rps < low.measured.rps:
            yield (
                f"{decode[0]} decode engine(s) TP{decode[1]}, {clients} clients: TPOT {high.measured.tpot_p50_ms:g} ms "
                f"in {high.experiment}, {low.measured.tpot_p50_ms:g} in {low.experiment}, though that decodes more "
                "requests a second"
            )


def _cold(kinds: Mapping[Row, Kind]) -> Iterable[str]:
    after: dict[str, Row] = {}
    for row in sorted(kinds, key=lambda row: -row.clients):
        more = after.get(row.experiment)
        if more and row.ttft_p99_ms > _COLD * row.measured.ttft_p50_ms and row.ttft_p99_ms > 2 * more.ttft_p99_ms:
            yield (
                f"{row.label}: TTFT p99 {row.ttft_p99_ms:.0f} ms, {more.ttft_p99_ms:.0f} with {more.clients} clients: "
                "the first requests found engines cold; it lowers that row's req/s"
            )
        after[row.experiment] = row


def _networks(kinds: Mapping[Row, Kind]) -> Iterable[str]:
    slow: dict[str, list[Row]] = {}
    for row, kind in kinds.items():
        if kind is Kind.SLOW:
            slow.setdefault(row.setup.network, []).append(row)
    for network, rows in slow.items():
        few, many = min(rows, key=lambda row: row.clients), max(rows, key=lambda row: row.clients)
        if _moved_rps(many) > 2 * _moved_rps(few):
            yield (
                f"{network}: {few.measured.rps:g} req/s with {few.clients} clients, {many.measured.rps:g} with "
                f"{many.clients}: transfers help each other along; the model moves one at a time at one speed"
            )


def _moved_rps(row: Row) -> float:
    """Without the requests whose prompts were there from earlier runs."""
    return row.measured.rps * (1 - max(row.earlier, default=0) / row.requests)


def _first(pair: tuple[float, Row]) -> float:
    return pair[0]
