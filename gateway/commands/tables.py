"""Tables for people, on a terminal and in files."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 200  # for files and pipes, where nothing has to fit a screen


def console() -> Console:
    """What commands print tables to."""
    made = Console()
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def table(*columns: str) -> Table:
    """An empty one, with a line of these words at its head."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def row(into: Table, *cells: str) -> None:
    """Add a row: names and reasons as they are, though they hold what rich takes for markup."""
    into.add_row(*map(Text, cells))


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
