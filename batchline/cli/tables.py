"""Batches, files and results as tables for people: columns that fit a terminal, times in words."""

import time
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from batchline.cli.console import results
from batchline.cli.meter import span
from batchline.models.batches import BatchResultItem
from batchline.models.files import FileObject
from batchline.models.status import TERMINAL, BatchStatus
from batchline.storage.records import BatchRecord

COLOURS = {
    BatchStatus.COMPLETED: "green",
    BatchStatus.FAILED: "red",
    BatchStatus.EXPIRED: "red",
    BatchStatus.CANCELLED: "yellow",
}
RESULT_COLOURS = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow"}
BATCH_COLUMNS = ("batch", "file", "status", "done", "age", "failed", "took", "tokens", "cost")
WIDE, NARROW = 115, 5
"""Columns of a terminal that holds all of the table's, and how many of them a narrower one gets."""

COST_PLACES = Decimal("0.0001")
TEXT_CHARACTERS = 200
ID_CHARACTERS = 38
UNBOUNDED = 2_000


def batch_table(batches: Iterable[BatchRecord], *, lease_s: float) -> Table:
    """A row a batch: state, progress, age, duration, tokens, cost; a narrow terminal gets the first of these."""
    names = BATCH_COLUMNS if not results().is_terminal or results().width >= WIDE else BATCH_COLUMNS[:NARROW]
    table = _table(*names, whole="batch", right=("done", "failed", "age", "took", "tokens", "cost"))
    now = time.time()
    for batch in batches:
        usage = batch.analytics
        cells = (
            batch.id,
            escape(batch.input_filename),
            _state(batch, now, lease_s),
            f"{batch.completed:,}/{batch.total:,}" if batch.total else "",
            age(now - batch.created_at),
            f"{batch.failed:,}" if batch.failed else "",
            took(batch, now),
            f"{usage.total_tokens:,}" if usage else "",
            cost(usage.total_cost) if usage and usage.total_cost else "",
        )
        table.add_row(*cells[: len(names)])
    return table


def _state(batch: BatchRecord, now: float, lease_s: float) -> str:
    """The state, and whether somebody is at work on it."""
    colour = COLOURS.get(batch.status, "cyan")
    note = runner_note(batch, now=now, lease_s=lease_s)
    return f"[{colour}]{batch.status}[/]" + (f" [red]({note})[/]" if note else "")


def runner_note(batch: BatchRecord, *, now: float, lease_s: float) -> str:
    """Why a batch that is not over does not move; empty where it does, or is over."""
    if batch.status in TERMINAL or batch.is_held(now=now, lease_s=lease_s):
        return ""
    if batch.lease_owner is not None:
        return "runner died"
    return "waiting" if batch.status is BatchStatus.VALIDATING else "stopped"


def took(batch: BatchRecord, now: float) -> str:
    """How long the batch's sending took, or has taken so far."""
    if batch.in_progress_at is None:
        return ""
    until = batch.ended_at if batch.status in TERMINAL else now
    return span(max(0.0, until - batch.in_progress_at))


def age(seconds: float) -> str:
    """How long ago, roughly."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def cost(amount: str) -> str:
    """The cost in few places; small ones are not made nothing of."""
    exact = Decimal(amount)
    short = exact.quantize(COST_PLACES)
    return f"{short:,f}" if short or not exact else f"<{COST_PLACES:f}"


def file_table(files: Iterable[FileObject]) -> Table:
    """A row a file."""
    table = _table("file", "name", "purpose", "bytes", "age", "expires", whole="file", right=("bytes", "age"))
    now = time.time()
    for file in files:
        left = None if file.expires_at is None else file.expires_at - now
        ends = "" if left is None else f"in {age(left)}" if left > 0 else "due"
        table.add_row(
            file.id, escape(file.filename), file.purpose, f"{file.bytes:,}", age(now - file.created_at), ends
        )
    return table


def result_table(items: Iterable[BatchResultItem]) -> Table:
    """A row a request: what became of it, and the beginning of the answer."""
    table = _table("line", "custom_id", "status", "model", "answer or error", whole="line")
    table.expand = results().is_terminal
    table.columns[-1].ratio = 1
    for item in items:
        colour = RESULT_COLOURS.get(item.status, "cyan")
        text = " ".join((item.error or answer_text(item.response_body)).split())
        table.add_row(
            item.id.rpartition("-")[2],
            escape(item.custom_id),
            f"[{colour}]{item.status}[/]",
            escape(item.model or ""),
            escape(text[:TEXT_CHARACTERS]),
        )
    return table


def answer_text(body: object) -> str:
    """What a model said, as far as the answer's shape is known; else the whole answer."""
    match body:
        case {"choices": [{"message": {"content": str(text)}}, *_]} | {"choices": [{"text": str(text)}, *_]}:
            return text
        case {"output": [*outputs]}:
            texts = (part for each in outputs for part in _texts(each))
            return " ".join(texts)
        case {"content": [*parts]}:
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        case None:
            return ""
    return str(body)


def _texts(output: object) -> Iterable[str]:
    match output:
        case {"content": [*parts]}:
            return [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
    return []


def _table(*names: str, whole: str, right: Sequence[str] = ()) -> Table:
    """A table without lines, whose column `whole` is never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        least = ID_CHARACTERS if name == whole and whole != "line" else None
        justify: Literal["left", "right"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=name != "name", min_width=least)
    return table


def print_table(table: Table, *, none: str) -> None:
    """Print the table, or those words where it has no rows; a program gets it as wide as it is."""
    if not table.row_count:
        results().print(none, markup=False)
    elif results().is_terminal:
        results().print(table)
    else:
        Console(file=results().file, width=UNBOUNDED, highlight=False, emoji=False).print(table)


def one_line(values: Sequence[object]) -> str:
    """The values behind each other, without those that are empty."""
    return " · ".join(str(value) for value in values if value)
