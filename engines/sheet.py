"""Tables for a terminal: whole even where it is narrow, since a number or a URL that is cut says nothing."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def sheet(names: Iterable[str], figures: Iterable[str] = (), title: str | None = None) -> Table:
    """A table with a column for each name, then one for each figure."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def show(table: Table, console: Console) -> None:
    """Print it, as wide as it must be."""
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    Console(file=console.file, width=max(needed, console.width)).print(table)
