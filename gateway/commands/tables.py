"""Tables for people, on a terminal and in files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 200  # for files and pipes, where nothing has to fit a screen
LONG_WORD = 16  # columns of a screen: a word that takes more, as a path, may go on in the next line
READABLE = 0.7  # of the columns in which no word breaks: with fewer nobody reads a table


class _Table(Table):
    """One that is read on narrow screens, too: there each of its cells has a line of its own."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        needed = sum(map(_needed, self._texts())) + 2 * (len(self.columns) - 1)
        if options.max_width >= READABLE * needed:
            return super().__rich_console__(console, options)
        return chain.from_iterable(console.render(each, options) for each in self._as_lists())

    def _texts(self) -> list[list[str]]:
        """What stands in each column, its head first."""
        return [[str(each) for each in (column.header, *column.cells)] for column in self.columns]

    def _as_lists(self) -> RenderResult:
        heads, *rows = zip(*self._texts(), strict=True)
        for row in rows:
            cells = Table.grid(padding=(0, 2, 0, 0))
            cells.add_column(style=self.header_style, no_wrap=True)
            cells.add_column(overflow="fold")
            for head, cell in zip(heads, row, strict=True):
                if cell:
                    cells.add_row(Text(head), Text(cell))
            yield cells
            if row is not rows[-1]:
                yield Text()


def _needed(texts: list[str]) -> int:
    """Columns of a screen in which no word of these breaks, but long ones."""
    words = (word for text in texts for word in text.split())
    return min(max(map(cell_len, words), default=0), LONG_WORD)


def console() -> Console:
    """What commands print tables to."""
    made = Console()
    if not made.is_terminal:
        made.width = PLAIN_WIDTH
    return made


def table(*columns: str) -> Table:
    """An empty one, with a line of these words at its head."""
    made = _Table(box=None, pad_edge=False, header_style="bold")
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
