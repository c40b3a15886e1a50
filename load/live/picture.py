"""One picture of a check: what was measured and what was foretold, as distributions and request by request."""

from collections.abc import Sequence
from pathlib import Path

from load.live.check import WITHIN, Verdict

_MEASURED, _FORETOLD = "#c26a3d", "#4878a8"


def draw(verdict: Verdict, path: Path) -> None:
    """Write it (.png or .svg). Needs `matplotlib`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured, foretold = verdict.measured, verdict.foretold
    figure, (ttft, itl, each) = pyplot.subplots(1, 3, figsize=(14, 4.6))
    sides = (("measured", measured, _MEASURED), ("foretold", foretold, _FORETOLD))
    for name, run, colour in sides:
        values = sorted(1e3 * value for value in run.ttft_s.values())
        ttft.step(values, _shares([1] * len(values)), where="post", color=colour, label=name)
        gaps = sorted(run.gaps)
        itl.step([1e3 * gap for gap, _ in gaps], _shares([n for _, n in gaps]), where="post", color=colour, label=name)
    errors = verdict.errors
    for axis, title, key in ((ttft, "TTFT", "ttft_ms"), (itl, "ITL", "itl_ms")):
        off = ", ".join(f"{point} {errors[f'{key}.{point}']:+.0%}" for point in ("mean", "p50", "p90"))
        axis.set_title(f"{title}: {off}", fontsize=10)
        axis.set_xlabel("ms")
        axis.set_ylabel("share of " + ("requests" if axis is ttft else "tokens"))
        axis.set_ylim(0, 1)
        axis.legend(loc="lower right", frameon=False)
    itl.set_xlim(0, 1.5e3 * max(_point(run.gaps, 0.98) for run in (measured, foretold)))
    ttft.set_xlim(left=0)
    both = [(1e3 * seen, 1e3 * foretold.ttft_s[at]) for at, seen in measured.ttft_s.items() if at in foretold.ttft_s]
    most = 1.05 * max((max(pair) for pair in both), default=1.0)
    each.fill_between([0, most], [0, (1 - WITHIN) * most], [0, (1 + WITHIN) * most], color="#000000", alpha=0.08, lw=0)
    each.plot([0, most], [0, most], color="#888888", lw=0.8)
    each.scatter([x for x, _ in both], [y for _, y in both], s=9, color=_FORETOLD, alpha=0.6, lw=0)
    each.set(xlim=(0, most), ylim=(0, most), xlabel="measured, ms", ylabel="foretold, ms")
    each.set_title(f"TTFT of each request; band: within {WITHIN:.0%}", fontsize=10)
    for axis in (ttft, itl, each):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{verdict.workload}, policy {verdict.policy}, {measured.side.requests} requests", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _shares(weights: Sequence[int]) -> list[float]:
    """How much has come, after each."""
    total, done, found = sum(weights), 0, []
    for weight in weights:
        done += weight
        found.append(done / total)
    return found


def _point(gaps: Sequence[tuple[float, int]], share: float) -> float:
    left = share * sum(count for _, count in gaps)
    for value, count in sorted(gaps):
        left -= count
        if left <= 0:
            return value
    return 0.0
