"""Tables are whole wherever they are shown."""

import io

from rich.console import Console

from engines.sheet import sheet, show


def test_nothing_is_cut_where_the_terminal_is_narrow() -> None:
    table = sheet(["engine", "url"], ["requests"], "Engines")
    table.add_row("prefill-engine-0", "http://prefill-0.example:8101", "1,234")
    shown = io.StringIO()
    show(table, Console(file=shown, width=20))
    title, _, heads, _, row, *_ = shown.getvalue().splitlines()
    assert title.strip() == "Engines" and heads.split() == ["engine", "url", "requests"]
    assert row.split() == ["prefill-engine-0", "http://prefill-0.example:8101", "1,234"]
