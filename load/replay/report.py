"""What a replay prints and writes: tables for a terminal 80 columns wide, and JSON."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from rich.console import Console

from engines import sheet
from load.replay.ideal import Ideal
from load.replay.outcome import Outcome
from load.replay.saturate import LEAST_S, Limit
from load.slo import Slo


class Key(NamedTuple):
    """One run: a policy on a fleet at a speed."""

    policy: str
    fleet: str
    times: float


def labels(keys: Iterable[Key]) -> dict[Key, str]:
    """Names of runs, as long as is needed to tell each from the others."""
    every = list(keys)
    fleets, speeds = len({key.fleet for key in every}) > 1, len({key.times for key in every}) > 1
    return {
        key: key.policy + (f" {key.fleet}" if fleets else "") + (f" x{key.times:g}" if speeds else "") for key in every
    }


def as_json(found: Mapping[Key, Outcome], ideals: Mapping[str, Ideal], slo: Slo) -> dict[str, Any]:
    """`policies.<label>` holds each run's figures; times in ms, shares between 0 and 1."""
    named = labels(found)
    return {
        "slo": msgspec.to_builtins(slo),
        "ideal_hit_rate": next(iter(ideals.values())).infinite if ideals else 0.0,
        "policies": {
            named[key]: {
                **msgspec.to_builtins(one),
                "policy": key.policy,
                "fleet": key.fleet,
                "speed": key.times,
                "ideal_hit_rate": ideals[key.fleet].infinite,
                "oracle_hit_rate": ideals[key.fleet].oracle,
                "pooled_lru_hit_rate": ideals[key.fleet].lru,
            }
            for key, one in found.items()
        },
    }


def limits_json(limits: Mapping[tuple[str, str], Limit], share: float, slo: Slo, wanted: float) -> dict[str, Any]:
    """What every fleet bears, and the cheapest that bears what is wanted."""
    best = cheapest(limits, wanted)
    return {
        "slo": msgspec.to_builtins(slo),
        "share": share,
        "wanted_speed": wanted,
        "cheapest": {"policy": best[0], "fleet": best[1], "gpus": limits[best].gpus} if best else None,
        "limits": [{"policy": n, "fleet": f, **msgspec.to_builtins(one)} for (n, f), one in limits.items()],
    }


def cheapest(limits: Mapping[tuple[str, str], Limit], wanted: float) -> tuple[str, str] | None:
    """Of those that bear traffic `wanted` times as fast, the one with the fewest GPUs, then that which bears most."""
    able = [key for key, one in limits.items() if one.speed >= wanted]
    return min(able, key=lambda key: (limits[key].gpus, -limits[key].speed), default=None)


def show(found: Mapping[Key, Outcome], ideals: Mapping[str, Ideal], slo: Slo, console: Console) -> None:
    """How long requests took, then how well the fleet was used."""
    named = labels(found)
    latencies = ("TTFT", "p50", "p90", "p99", "TPOT", "p99", "ITL", "p99", "E2E", "p99")
    times = sheet.sheet(["policy"], latencies, "Times: means and percentiles, ms")
    for key, one in found.items():
        t, p, i, e = one.ttft_ms, one.tpot_ms, one.itl_ms, one.e2e_ms
        steps = (f"{value:.1f}" for value in (p.mean, p.p99, i.mean, i.p99))
        times.add_row(named[key], *map(_short, (t.mean, t.p50, t.p90, t.p99)), *steps, *map(_short, (e.mean, e.p99)))
    sheet.show(times, console)
    title = f"Use: SLO is TTFT <= {slo.ttft_s:g} s and TPOT <= {1e3 * slo.tpot_s:g} ms; goodput: requests/s within it"
    heads = ("requests", "SLO", "goodput", "hit", "local", "TB moved", "balance", "refused")
    use = sheet.sheet(["policy"], heads, title)
    for key, one in found.items():
        shares = (f"{one.hit_rate:.1%}", f"{one.local_share:.0%}", f"{one.transferred_tb:.2f}", f"{one.balance:.2f}")
        whole = (str(one.requests), f"{one.slo_met:.1%}", f"{one.goodput_rps:.2f}")
        use.add_row(named[key], *whole, *shares, str(one.refused))
    sheet.show(use, console)
    sizes: dict[Ideal, list[str]] = {}
    for fleet, bound in ideals.items():
        sizes.setdefault(bound, []).append(fleet)
    for bound, fleets in sizes.items():
        console.print(
            f"Hits at best, {', '.join(fleets)}: {bound.infinite:.1%} with one infinite cache for all, "
            f"{bound.oracle:.1%} with one of the fleet's size that knows the future, {bound.lru:.1%} if it were LRU",
            highlight=False,
        )


def _short(milliseconds: float) -> str:
    if milliseconds < 1e4:
        return f"{milliseconds:.0f}"
    return f"{milliseconds / 1e3:.1f}s" if milliseconds < 1e5 else f"{milliseconds / 1e3:.0f}s"


def show_limits(
    limits: Mapping[tuple[str, str], Limit], share: float, slo: Slo, wanted: float, console: Console
) -> None:
    """Fleets and policies by what they can bear for each GPU, the best first."""
    title = (
        f"The highest load of which {share:.0%} is served in time (TTFT <= {slo.ttft_s:g} s, "
        f"TPOT <= {1e3 * slo.tpot_s:g} ms)"
    )
    heads = ("GPUs", "speed", "req/s", "a GPU", "TTFT", "ITL p99", "hit")
    table = sheet.sheet(["fleet", "policy"], heads, title)
    for (name, fleet), one in sorted(limits.items(), key=lambda item: -item[1].per_gpu):
        if one.outcome is None:
            table.add_row(fleet, name, str(one.gpus), "none")
            continue
        table.add_row(
            fleet,
            name,
            str(one.gpus),
            f"{'> ' if one.more else ''}x{one.speed:.2f}",
            f"{one.requests_per_s:.1f}",
            f"{one.per_gpu:.2f}",
            f"{one.outcome.ttft_ms.mean:.0f}",
            f"{one.outcome.itl_ms.p99:.0f}",
            f"{one.outcome.hit_rate:.1%}",
        )
    sheet.show(table, console)
    if any(one.more for one in limits.values()):
        console.print(f"> : more cannot be told from this traffic, which would all arrive within {LEAST_S:g} s")
    if (best := cheapest(limits, wanted)) is not None:
        console.print(f"The cheapest that bears x{wanted:g}: {best[1]} with {best[0]}, {limits[best].gpus} GPUs")
    else:
        console.print(f"None of them bears x{wanted:g}: try larger fleets, or a lower share or objective")
