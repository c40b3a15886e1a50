"""How a run is told, to people and to scripts."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from load.chaos.plan import Plan
from load.chaos.run import Report


def facts(plan: Plan, report: Report, good: bool) -> dict[str, Any]:
    """A run as JSON."""
    return {
        "good": good,
        "scenario": plan.scenario,
        "seed": plan.seed,
        **report.tally.facts(),
        "took_s": round(report.took_s, 1),
        "blows": dict(Counter(blow.deed for blow in report.blows)),
        "gateways": report.findings.gateways,
        "counts": report.findings.counts,
        "index": report.findings.predicted,
        "trouble": report.trouble,
        "stopped": report.stopped,
    }


_MEANING = {
    "requests": "ended, one way or the other",
    "wrong": "a wrong token, usage, id or finish reason",
    "lost": "a token, the end, or a stream without a word",
    "doubled": "a token that came twice",
    "hung": "no end within their time",
    "client_errors": "an error that the client can parse",
    "leaked": "left behind: bookings, requests, leases, tasks, memory, wrong index entries",
    "severed": "streams of a gateway in the moment that it was killed",
    "left": "clients that went away on purpose",
    "retried": "sent again by the client: a gateway was down, no byte had come",
}


def show(console: Console, plan: Plan, report: Report, good: bool) -> None:
    """A run for people."""
    tally = report.tally
    told = tally.facts()
    title = f"{plan.scenario}, seed {plan.seed}: {len(report.blows)} blows in {report.took_s:.0f} s"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    never = ("wrong", "lost", "doubled", "hung", "leaked")
    for name, meaning in _MEANING.items():
        style = "red" if name in never and told[name] else ""
        table.add_row(name, f"{told[name]:,}", meaning, style=style)
    console.print(table)

    def line(name: str, text: str) -> None:
        if text:
            console.print(f"[bold]{name}[/] {text}", highlight=False, soft_wrap=True)

    def counted(counts: Iterable[tuple[str, int]]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts)

    line("blows:", counted(Counter(blow.deed for blow in report.blows).most_common()))
    line("client errors:", counted(tally.causes.most_common()))
    line("gateways:", counted(sorted(report.findings.counts.items())))
    for name, grown in report.findings.gateways.items():
        line(f"{name}:", ", ".join(f"{what} {value:g}" for what, value in grown.items()))
    line("index:", report.findings.predicted)
    line("time of a request:", f"p50 {tally.seconds(50):.2f} s, p99 {tally.seconds(99):.2f} s")
    for text in (*tally.examples, *tally.leaks, *report.trouble):
        console.print(f"  {text}", style="red", highlight=False, markup=False, soft_wrap=True)
    if report.stopped:
        console.print("[yellow]stopped[/] before its end: nothing is proven")
    else:
        console.print("[green]good[/]" if good else "[red]not good[/]")
