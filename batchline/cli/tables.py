"""Rows for people: a table where it fits, else two lines a row; however many, in bounded memory."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from batchline.cli.console import results

ROWS_AT_ONCE = 1_000
UNBOUNDED = 2_000
GAP = "  "
Cell = Text | str


class Column(NamedTuple):
    """A column of the table; one of `least` may be cut to so many characters, the others are never cut."""

    name: str
    right: bool = False
    least: int = 0


class Row(NamedTuple):
    """A row: a cell for each column; where the table is too wide, the first line's cells and the second line."""

    cells: tuple[Cell, ...]
    head: tuple[Cell, ...]
    more: Cell


def print_rows(rows: Iterable[Row], columns: Sequence[Column], *, none: str) -> None:
    """Print the rows, or those words where there are none.

    As a table where the terminal holds it, and for programs; otherwise each row gets two lines.
    """
    rest, console = iter(rows), results()
    block = list(islice(rest, ROWS_AT_ONCE))
    if not block:
        console.print(none, markup=False)
        return
    names = [len(column.name) for column in columns]
    widths = _widths([row.cells for row in block], names)
    if console.is_terminal and _total(widths, columns) > console.width:
        _print_in_two_lines(console, block, rest)
        return
    out = console if console.is_terminal else _unbounded(console)
    named = True
    while block:
        widths = _widths([row.cells for row in block], widths)
        out.print(_table(block, columns, _fitted(widths, columns, out.width), named=named))
        block, named = list(islice(rest, ROWS_AT_ONCE)), False


def _total(widths: Sequence[int], columns: Sequence[Column]) -> int:
    """The least width of the table."""
    cells = [min(width, column.least or width) for width, column in zip(widths, columns, strict=True)]
    return sum(cells) + len(GAP) * (len(cells) - 1)


def _fitted(widths: Sequence[int], columns: Sequence[Column], room: int) -> list[int]:
    """The widths, with those that may be cut to what the others leave."""
    spare = room - _total(widths, columns)
    fitted = []
    for width, column in zip(widths, columns, strict=True):
        least = min(width, column.least or width)
        more = min(width - least, max(0, spare))
        spare -= more
        fitted.append(least + more)
    return fitted


def _unbounded(console: Console) -> Console:
    return type(console)(
        file=console.file, width=UNBOUNDED, highlight=False, emoji=False, no_color=console.no_color
    )


def _widths(rows: Iterable[tuple[Cell, ...]], before: Sequence[int]) -> list[int]:
    """The width of each place, not less than before, so that later rows stand below the earlier."""
    return [
        max(least, *(_text(cell).cell_len for cell in place))
        for place, least in zip(zip(*rows, strict=True), before, strict=True)
    ]


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _table(rows: Sequence[Row], columns: Sequence[Column], widths: Sequence[int], *, named: bool) -> Table:
    """A table without lines; only the first of several bears names."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=named)
    for column, width in zip(columns, widths, strict=True):
        justify = "right" if column.right else "left"
        table.add_column(column.name, justify=justify, overflow="ellipsis", no_wrap=True, width=width)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(_text, row.cells))
    return table


def _print_in_two_lines(out: Console, block: list[Row], rest: Iterable[Row]) -> None:
    widths = [0] * len(block[0].head)
    rows = iter(rest)
    while block:
        widths = _widths([row.head for row in block], widths)
        for row in block:
            out.print(_joined(row.head, widths), overflow="fold")
            if more := _text(row.more):
                more.stylize("dim")
                out.print(Text.assemble(GAP, more), no_wrap=True, overflow="ellipsis")
        block = list(islice(rows, ROWS_AT_ONCE))


def _joined(cells: Sequence[Cell], widths: Sequence[int]) -> Text:
    """The cells below those of other rows."""
    line = Text()
    for cell, width in zip(cells, widths, strict=True):
        text = _text(cell).copy()
        text.pad_right(max(0, width - text.cell_len))
        line += text + GAP
    line.rstrip()
    return line


def described(facts: Iterable[Cell]) -> Text:
    """Facts behind each other, without those that are empty."""
    return Text(" · ").join(text for text in map(_text, facts) if text)
