"""What `baton up` and `baton engines up` show: which process is how far, and how long it took."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from engines.service import Phase, Service
from engines.supervisor import elapsed_s


class Board:
    """A live table in a terminal; elsewhere one line per change."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def watching(self, services: Sequence[Service]) -> Iterator[Callable[[], None]]:
        """Show services while they start; the function given shows where they are now."""
        if not services:
            yield lambda: None
        elif self._console.is_terminal:
            spinner = Spinner("dots")
            with Live(_table(services, spinner), console=self._console, refresh_per_second=8) as live:
                yield lambda: live.update(_table(services, spinner))
                live.update(_table(services, spinner))
        else:
            seen: dict[str, str] = {}

            def changes() -> None:
                for service in services:
                    if seen.get(service.name) != service.stage:
                        seen[service.name] = service.stage
                        self.say(f"{service.name}: {service.stage} ({elapsed_s(service):.0f} s)")

            yield changes
            changes()

    def ready(self, url: str, model: str) -> None:
        """How to use what is running."""
        self._console.print(f"\n[bold green]Ready[/] at {url}. Try it:\n")
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 32}}'
        lines = (
            f"  curl {url}/v1/chat/completions \\",
            "    -H 'content-type: application/json' \\",
            f"    -d '{body}'\n",
        )
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


_MARKS = {Phase.READY: Text("✔", style="green"), Phase.FAILED: Text("✘", style="red")}


def _table(services: Sequence[Service], spinner: Spinner) -> Table:
    table = Table.grid(padding=(0, 2))
    for service in services:
        bar = ProgressBar(total=1.0, completed=service.share, width=20)
        mark = _MARKS.get(service.phase, spinner)
        table.add_row(mark, service.name, bar, service.stage, f"{elapsed_s(service):.0f} s")
    return table
