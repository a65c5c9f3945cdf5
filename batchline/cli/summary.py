"""Print the summary of a batch."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from batchline.cli.console import stdout_console
from batchline.cli.error_groups import describe_lines, group_errors
from batchline.engine.services import Services
from batchline.models.analytics import BatchReport, Percentiles
from batchline.models.batches import BatchResponse
from batchline.models.formatting import duration, span, speed
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.report.formatting import unanswered_by_word
from batchline.storage.objects import layout

COLOURS = {BatchStatus.COMPLETED: "green", BatchStatus.FAILED: "red", BatchStatus.EXPIRED: "red"}
MAX_SHOWN_ERRORS = 20
NAME_WIDTH = 12


def print_summary(
    batch: BatchResponse,
    report: BatchReport | None,
    services: Services,
    *,
    locations: tuple[tuple[str, str], ...] = (),
    is_retried: bool = False,
) -> None:
    """Print a batch's metrics, the given locations and those of its files, and its errors."""
    for name, value in (
        *_state_rows(batch, report, is_retried=is_retried),
        *_usage_rows(batch, report, services),
        *_report_rows(report),
    ):
        _print_row(name, value)
    for name, value in (*locations, *_file_rows(batch, report, services)):
        _print_row(name, escape(value), is_unbroken=True)
    errors = group_errors(batch.errors.data if batch.errors else [], max_groups=MAX_SHOWN_ERRORS)
    for error in errors[:MAX_SHOWN_ERRORS]:
        location = f"{describe_lines(error.lines)}: " if error.lines else ""
        stdout_console().print(f"  {location}{error.message} ({error.code})", markup=False)
    if len(errors) > MAX_SHOWN_ERRORS:
        stdout_console().print(
            f"  and {len(errors) - MAX_SHOWN_ERRORS:,} more; `batchline validate FILE` prints all of them"
        )
    if batch.status is BatchStatus.FAILED and not batch.request_counts.total:
        stdout_console().print("nothing was sent; mend the file and run it again")


def _print_row(name: str, value: str, *, is_unbroken: bool = False) -> None:
    """Print a name and a value, wrapped below itself unless it should stay whole to be copied."""
    if is_unbroken or stdout_console().soft_wrap:
        stdout_console().print(f"[bold]{name:{NAME_WIDTH}}[/]{value}", soft_wrap=True)
        return
    row = Table.grid()
    row.add_column(width=NAME_WIDTH)
    row.add_column()
    row.add_row(f"[bold]{name}[/]", value)
    stdout_console().print(row)


def _state_rows(
    batch: BatchResponse, report: BatchReport | None, *, is_retried: bool
) -> Iterator[tuple[str, str]]:
    yield "batch", batch.id
    yield "status", f"[{COLOURS.get(batch.status, 'yellow')}]{batch.status}[/]"
    counts = batch.request_counts
    unanswered_counts = unanswered_by_word(report) if batch.status in TERMINAL_STATUSES else {}
    if other_count := counts.total - counts.completed - counts.failed - sum(unanswered_counts.values()):
        unanswered_counts["not answered" if batch.status in TERMINAL_STATUSES else "pending"] = other_count
    outcome_counts = {"completed": counts.completed, "failed": counts.failed, **unanswered_counts}
    yield (
        "requests",
        f"{counts.total:,}: {', '.join(f'{number:,} {word}' for word, number in outcome_counts.items())}",
    )
    ended = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    if ended and batch.in_progress_at:
        elapsed = span(max(1, ended - batch.in_progress_at))
        # The report's rate covers the first request to the last answer, including the pause before a retry.
        rate = report.requests_per_s if report is not None and not is_retried else None
        yield "retry took" if is_retried else "took", f"{elapsed}, {speed(rate)}" if rate else elapsed


def _usage_rows(batch: BatchResponse, report: BatchReport | None, services: Services) -> Iterator[tuple[str, str]]:
    usage = batch.analytics
    if usage is None:
        return
    reasoning = f" (reasoning {usage.total_reasoning_tokens:,})" if usage.total_reasoning_tokens else ""
    yield (
        "tokens",
        f"{usage.total_tokens:,}: prompt {usage.total_prompt_tokens:,}, completion "
        f"{usage.total_completion_tokens:,}{reasoning}",
    )
    # The price list is in US dollars; the currency of configured prices is unknown.
    currency = "" if services.settings.prices else " USD"
    if usage.total_cost is not None:
        yield "cost", f"{usage.total_cost}{currency}"
    elif report is not None and report.unpriced_models:
        known_cost = sum((Decimal(model.cost) for model in report.models if model.cost), Decimal(0))
        names = escape(", ".join(report.unpriced_models))
        yield (
            "cost",
            f"{known_cost or 'unknown'}{currency if known_cost else ''}, without {names} (set BATCHLINE_PRICES)",
        )


def _report_rows(report: BatchReport | None) -> Iterator[tuple[str, str]]:
    if report is None:
        return
    if report.duration_ms is not None:
        yield "latency", _format_percentiles(report.duration_ms)
    if report.ttfb_ms is not None:
        yield "first byte", _format_percentiles(report.ttfb_ms)
    if report.retries:
        yield "retries", _format_counts(report.retries)
    if report.failures:
        yield "failures", _format_counts(report.failures)


def _file_rows(batch: BatchResponse, report: BatchReport | None, services: Services) -> Iterator[tuple[str, str]]:
    """Yield the files' locations: a row each, or a folder and file names if that would not fit the terminal."""
    keys = {}
    if batch.status in TERMINAL_STATUSES and batch.output_file_id:
        keys["output"] = layout.output_key(batch.id)
    if batch.status in TERMINAL_STATUSES and batch.error_file_id:
        keys["errors"] = layout.errors_key(batch.id)
    if report is not None:
        keys["figures"] = layout.requests_key(batch.id)
    page = layout.report_page_key(batch.id)
    if batch.status in TERMINAL_STATUSES and services.store.exists(page):
        keys["report"] = page
    rows = [(name, _shorten_home(services.store.uri(key))) for name, key in keys.items()]
    is_fitting = all(NAME_WIDTH + len(path) <= stdout_console().width for _, path in rows)
    if is_fitting or stdout_console().soft_wrap:
        yield from rows
        return
    yield "files", rows[0][1].rpartition("/")[0] + "/"
    yield "", ", ".join(path.rpartition("/")[2] for _, path in rows)


def _shorten_home(path: str) -> str:
    """Return the path with `~` for the home folder on a terminal, in full for programs."""
    home = f"{Path.home()}/"
    return f"~/{path.removeprefix(home)}" if stdout_console().is_terminal and path.startswith(home) else path


def _format_percentiles(percentiles: Percentiles) -> str:
    names = ("p50", "p90", "p95", "p99", "max")
    return ", ".join(f"{name} {duration(getattr(percentiles, name))}" for name in names)


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
