"""What a person reads at a batch's end."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from batchline.cli.console import results
from batchline.cli.grouping import grouped, places_of
from batchline.models.analytics import BatchReport, Percentiles
from batchline.models.batches import BatchResponse
from batchline.models.formatting import duration, span, speed
from batchline.models.status import TERMINAL, BatchStatus
from batchline.steps.engine import Engine
from batchline.steps.report.words import unanswered
from batchline.storage import layout

COLOURS = {BatchStatus.COMPLETED: "green", BatchStatus.FAILED: "red", BatchStatus.EXPIRED: "red"}
SHOWN_ERRORS = 20
NAME_COLUMNS = 12


def print_summary(
    batch: BatchResponse,
    report: BatchReport | None,
    engine: Engine,
    *,
    places: tuple[tuple[str, str], ...] = (),
    is_retried: bool = False,
) -> None:
    """Print a batch's figures, where its files and those other things are, and its errors."""
    for name, value in (
        *_state_rows(batch, report, is_retried=is_retried),
        *_usage_rows(batch, report, engine),
        *_report_rows(report),
    ):
        _print_row(name, value)
    for name, value in (*places, *_file_rows(batch, report, engine)):
        _print_row(name, escape(value), whole=True)
    errors = grouped(batch.errors.data if batch.errors else [], most=SHOWN_ERRORS)
    for error in errors[:SHOWN_ERRORS]:
        where = f"{places_of(error.lines)}: " if error.lines else ""
        results().print(f"  {where}{error.message} ({error.code})", markup=False)
    if len(errors) > SHOWN_ERRORS:
        results().print(f"  and {len(errors) - SHOWN_ERRORS:,} more; `batchline validate FILE` prints all of them")
    if batch.status is BatchStatus.FAILED and not batch.request_counts.total:
        results().print("nothing was sent; mend the file and run it again")


def _print_row(name: str, value: str, *, whole: bool = False) -> None:
    """A name and its value, which continues below itself unless it is to be kept whole, to be copied."""
    if whole or results().soft_wrap:
        results().print(f"[bold]{name:{NAME_COLUMNS}}[/]{value}", soft_wrap=True)
        return
    row = Table.grid()
    row.add_column(width=NAME_COLUMNS)
    row.add_column()
    row.add_row(f"[bold]{name}[/]", value)
    results().print(row)


def _state_rows(
    batch: BatchResponse, report: BatchReport | None, *, is_retried: bool
) -> Iterator[tuple[str, str]]:
    yield "batch", batch.id
    yield "status", f"[{COLOURS.get(batch.status, 'yellow')}]{batch.status}[/]"
    counts = batch.request_counts
    rest = unanswered(report) if batch.status in TERMINAL else {}
    if others := counts.total - counts.completed - counts.failed - sum(rest.values()):
        rest["not answered" if batch.status in TERMINAL else "pending"] = others
    ends = {"completed": counts.completed, "failed": counts.failed, **rest}
    yield "requests", f"{counts.total:,}: {', '.join(f'{number:,} {word}' for word, number in ends.items())}"
    ended = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    if ended and batch.in_progress_at:
        took = span(max(1, ended - batch.in_progress_at))
        # The report's rate counts from the first request to the last answer, over a retry's pause as well.
        rate = report.requests_per_s if report is not None and not is_retried else None
        yield "retry took" if is_retried else "took", f"{took}, {speed(rate)}" if rate else took


def _usage_rows(batch: BatchResponse, report: BatchReport | None, engine: Engine) -> Iterator[tuple[str, str]]:
    usage = batch.analytics
    if usage is None:
        return
    reasoning = f" (reasoning {usage.total_reasoning_tokens:,})" if usage.total_reasoning_tokens else ""
    yield (
        "tokens",
        f"{usage.total_tokens:,}: prompt {usage.total_prompt_tokens:,}, completion "
        f"{usage.total_completion_tokens:,}{reasoning}",
    )
    # The price list is in US dollars; a person's own prices are in whatever they are in.
    currency = "" if engine.settings.prices else " USD"
    if usage.total_cost is not None:
        yield "cost", f"{usage.total_cost}{currency}"
    elif report is not None and report.unpriced_models:
        known = sum((Decimal(model.cost) for model in report.models if model.cost), Decimal(0))
        names = escape(", ".join(report.unpriced_models))
        yield "cost", f"{known or 'unknown'}{currency if known else ''}, without {names} (set BATCHLINE_PRICES)"


def _report_rows(report: BatchReport | None) -> Iterator[tuple[str, str]]:
    if report is None:
        return
    if report.duration_ms is not None:
        yield "latency", _percentiles(report.duration_ms)
    if report.ttfb_ms is not None:
        yield "first byte", _percentiles(report.ttfb_ms)
    if report.retries:
        yield "retries", _counts(report.retries)
    if report.failures:
        yield "failures", _counts(report.failures)


def _file_rows(batch: BatchResponse, report: BatchReport | None, engine: Engine) -> Iterator[tuple[str, str]]:
    """Where the files are: a row each, or one folder and its files where that would not fit the terminal."""
    keys = {}
    if batch.status in TERMINAL and batch.output_file_id:
        keys["output"] = layout.output_key(batch.id)
    if batch.status in TERMINAL and batch.error_file_id:
        keys["errors"] = layout.errors_key(batch.id)
    if report is not None:
        keys["figures"] = layout.requests_key(batch.id)
    page = layout.report_page_key(batch.id)
    if batch.status in TERMINAL and engine.store.exists(page):
        keys["report"] = page
    rows = [(name, _shown(engine.store.uri(key))) for name, key in keys.items()]
    fits = all(NAME_COLUMNS + len(place) <= results().width for _, place in rows)
    if fits or results().soft_wrap:
        yield from rows
        return
    yield "files", rows[0][1].rpartition("/")[0] + "/"
    yield "", ", ".join(place.rpartition("/")[2] for _, place in rows)


def _shown(place: str) -> str:
    """The place as a person at a terminal writes it; a program gets it in full."""
    home = f"{Path.home()}/"
    return f"~/{place.removeprefix(home)}" if results().is_terminal and place.startswith(home) else place


def _percentiles(points: Percentiles) -> str:
    names = ("p50", "p90", "p95", "p99", "max")
    return ", ".join(f"{name} {duration(getattr(points, name))}" for name in names)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
