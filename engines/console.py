"""What `baton up` shows: which process is how far, and how long it took."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from engines.supervisor import Service


class Board:
    """A live table in a terminal; elsewhere one line per change."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, highlight=False)

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
                    name, stage = service.process.name, service.stage
                    if seen.get(name) != stage:
                        seen[name] = stage
                        self.say(f"{name}: {stage} ({_elapsed(service):.0f} s)")

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


def _elapsed(service: Service) -> float:
    if service.ready or not service.started_s:
        return service.took_s
    return time.monotonic() - service.started_s


def _table(services: Sequence[Service], spinner: Spinner) -> Table:
    table = Table.grid(padding=(0, 2))
    for service in services:
        mark = Text("✔", style="green") if service.ready else spinner
        table.add_row(mark, service.process.name, service.stage, f"{_elapsed(service):.0f} s")
    return table
