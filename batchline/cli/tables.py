"""Print tables of any length in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from batchline.cli.console import stdout_console
from batchline.models.formatting import strip_controls

ROWS_PER_BLOCK = 1_000
GAP = 2
Row = tuple[Text | str, ...]
"""One cell per column."""


def plain(text: str) -> Text:
    """Return foreign text for literal display: no markup, no control characters."""
    return Text(strip_controls(text))


class Column(NamedTuple):
    """A column; with `least` its cells may be cut to that many characters, else they are never cut."""

    name: str
    right: bool = False
    least: int = 0


def print_rows(rows: Iterable[Row], columns: Sequence[Column], *, none: str) -> None:
    """Print the rows, or the text `none` if there are none.

    A terminal that is too narrow for all columns shows the first ones, so the most important come first.
    """
    rest, is_first = iter(rows), True
    while block := [
        [Text(cell) if isinstance(cell, str) else cell for cell in row] for row in islice(rest, ROWS_PER_BLOCK)
    ]:
        widths = list(_column_widths(block, columns))
        columns = columns[: len(widths)]
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_header=is_first)
        for column, width in zip(columns, widths, strict=True):
            justify = "right" if column.right else "left"
            table.add_column(column.name, justify=justify, width=width, no_wrap=True)  # type: ignore[arg-type]
        for row in block:
            table.add_row(*row[: len(widths)])
        stdout_console().print(table, soft_wrap=False)
        is_first = False
    if is_first:
        stdout_console().print(none, markup=False)


def _column_widths(rows: Sequence[Sequence[Text]], columns: Sequence[Column]) -> Iterator[int]:
    """Yield the widths of the columns that fit; columns that may be cut share the remaining width."""
    room = stdout_console().width
    full = [
        max(len(column.name), *(cell.cell_len for cell in cells))
        for column, cells in zip(columns, zip(*rows, strict=True), strict=True)
    ]
    least = [min(width, column.least or width) for width, column in zip(full, columns, strict=True)]
    taken = [end - GAP for end in accumulate(width + GAP for width in least) if end - GAP <= room]
    spare = room - taken[-1] if taken else 0
    for width, cut in zip(full[: max(1, len(taken))], least, strict=False):
        more = min(width - cut, spare)
        spare -= more
        yield cut + more
