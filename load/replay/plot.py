"""One picture of a replay: TTFT and ITL of each run, side by side."""

from collections.abc import Mapping
from pathlib import Path

from load.replay.outcome import Outcome


def plot(found: Mapping[str, Outcome], path: Path) -> None:
    """Draw mean and p99 of TTFT, p99 of ITL and the hit rate, a bar for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("TTFT mean, ms", [one.ttft_ms.mean for one in found.values()], True),
        ("TTFT p99, ms", [one.ttft_ms.p99 for one in found.values()], True),
        ("ITL p99, ms", [one.itl_ms.p99 for one in found.values()], False),
        ("hit rate, %", [100 * one.hit_rate for one in found.values()], False),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 0.8 + 0.34 * len(found)), sharey=True)
    for axis, (title, values, logarithmic) in zip(axes, panels, strict=True):
        bars = axis.barh(range(len(values)), values, color="#4878a8", height=0.7)
        axis.bar_label(
            bars, [f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in values], padding=3, fontsize=8
        )
        axis.set_title(title, fontsize=10)
        if logarithmic and max(values) > 20 * min(values):
            axis.set_xscale("log")
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(found)), list(found), fontsize=9)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
