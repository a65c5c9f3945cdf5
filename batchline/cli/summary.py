"""Print the summary of a batch."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from batchline.cli.console import stdout_console
from batchline.cli.error_groups import describe_lines, group_errors
from batchline.client import Batchline, BatchRecord
from batchline.models.analytics import BatchReport, Percentiles
from batchline.models.formatting import format_duration, format_rate, format_span
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.report.formatting import failures_text, marks_text, retry_command, unanswered_by_word

COLOURS = {BatchStatus.COMPLETED: "green", BatchStatus.FAILED: "red", BatchStatus.EXPIRED: "red"}
MAX_SHOWN_ERRORS = 20
NAME_WIDTH = 12
PERCENTILES = tuple(Percentiles.model_fields)


def print_summary(client: Batchline, batch: BatchRecord, *, locations: Sequence[tuple[str, str]] = ()) -> None:
    """Print a batch's metrics, the given locations and those of its files, and its errors."""
    report = client.batches.find_report(batch.id)
    currency = f" {client.currency}" if client.currency else ""
    for name, value in (*_state_rows(batch, report), *_usage_rows(batch, report, currency), *_report_rows(report)):
        _print_row(name, value)
    marks = report.marks if report is not None and batch.status in TERMINAL_STATUSES else ()
    commands = [("to retry", retry_command(batch.id, mark)) for mark in marks]
    for name, value in (*commands, *locations, *_file_rows(client.batches.file_uris(batch))):
        _print_row(name, escape(value), is_unbroken=True)
    errors = group_errors(batch.errors or (), max_groups=MAX_SHOWN_ERRORS)
    for error in errors[:MAX_SHOWN_ERRORS]:
        location = f"{describe_lines(error.lines)}: " if error.lines else ""
        stdout_console().print(f"  {location}{error.message} ({error.code})", markup=False)
    if len(errors) > MAX_SHOWN_ERRORS:
        stdout_console().print(
            f"  and {len(errors) - MAX_SHOWN_ERRORS:,} more; `batchline validate FILE` prints all of them"
        )
    if batch.status is BatchStatus.FAILED and not batch.total:
        stdout_console().print("nothing was sent; correct the file and run it again")


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


def _state_rows(batch: BatchRecord, report: BatchReport | None) -> Iterator[tuple[str, str]]:
    yield "batch", batch.id
    yield "status", f"[{COLOURS.get(batch.status, 'yellow')}]{batch.status}[/]"
    if batch.pause is not None:
        paused_at = datetime.fromtimestamp(batch.pause.at, UTC)
        yield "paused", f"{escape(batch.pause.message)} ({batch.pause.code}, since {paused_at:%Y-%m-%d %H:%M} UTC)"
    is_ended = batch.status in TERMINAL_STATUSES
    unanswered_counts = unanswered_by_word(report) if is_ended else {}
    if other_count := batch.total - batch.completed - batch.failed - sum(unanswered_counts.values()):
        unanswered_counts["not answered" if is_ended else "pending"] = other_count
    marks = f", {text}" if (text := marks_text(report)) else ""
    outcome_counts = {f"completed{marks}": batch.completed, "failed": batch.failed, **unanswered_counts}
    outcomes = ", ".join(f"{number:,} {word}" for word, number in outcome_counts.items())
    yield "requests", f"{batch.total:,}: {outcomes}"
    if batch.ended_at and batch.in_progress_at:
        elapsed = format_span(max(1, batch.ended_at - batch.in_progress_at))
        # The report's rate covers the first request to the last answer, including the pause before a retry.
        rate = report.requests_per_s if report is not None and not batch.generation else None
        yield "retry took" if batch.generation else "took", f"{elapsed}, {format_rate(rate)}" if rate else elapsed


def _usage_rows(batch: BatchRecord, report: BatchReport | None, currency: str) -> Iterator[tuple[str, str]]:
    usage = batch.analytics
    if usage is None:
        return
    reasoning = f" (reasoning {usage.total_reasoning_tokens:,})" if usage.total_reasoning_tokens else ""
    yield (
        "tokens",
        f"{usage.total_tokens:,}: prompt {usage.total_prompt_tokens:,}, completion "
        f"{usage.total_completion_tokens:,}{reasoning}",
    )
    if usage.total_cost is not None:
        yield "cost", f"{usage.total_cost}{currency}"
    elif report is not None and report.unpriced_models:
        known_cost = sum((Decimal(model.cost) for model in report.models if model.cost), Decimal(0))
        cost = f"{known_cost}{currency}" if known_cost else "unknown"
        yield "cost", f"{cost}, without {escape(', '.join(report.unpriced_models))} (set BATCHLINE_PRICES)"


def _report_rows(report: BatchReport | None) -> Iterator[tuple[str, str]]:
    if report is None:
        return
    for name, percentiles in (("latency", report.duration_ms), ("first byte", report.ttfb_ms)):
        if percentiles is not None:
            yield (
                name,
                ", ".join(f"{field} {format_duration(getattr(percentiles, field))}" for field in PERCENTILES),
            )
    if report.retries:
        yield "retries", ", ".join(f"{reason} {count:,}" for reason, count in report.retries.items())
    if report.failures:
        yield "failures", escape(failures_text(report))


def _file_rows(uris: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the files' locations: a row each, or a folder and file names if that would not fit the terminal."""
    console, home = stdout_console(), f"{Path.home()}/"
    # `~` for people at a terminal, the full path for programs.
    is_short = console.is_terminal
    paths = {
        name: f"~/{uri.removeprefix(home)}" if is_short and uri.startswith(home) else uri
        for name, uri in uris.items()
    }
    if console.soft_wrap or all(NAME_WIDTH + len(path) <= console.width for path in paths.values()):
        yield from paths.items()
        return
    yield "files", next(iter(paths.values())).rpartition("/")[0] + "/"
    yield "", ", ".join(path.rpartition("/")[2] for path in paths.values())
