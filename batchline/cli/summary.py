"""What a person reads at a batch's end."""

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from batchline.models.analytics import BatchReport, Percentiles
from batchline.models.batches import BatchResponse
from batchline.models.status import BatchStatus
from batchline.steps.engine import Engine
from batchline.storage import layout

COLOURS = {BatchStatus.COMPLETED: "green", BatchStatus.FAILED: "red", BatchStatus.EXPIRED: "red"}
SHOWN_ERRORS = 20


def print_json(batch: BatchResponse) -> None:
    """Print the batch as one JSON object on standard output."""
    sys.stdout.write(batch.model_dump_json() + "\n")
    sys.stdout.flush()


def print_summary(batch: BatchResponse, report: BatchReport | None, engine: Engine) -> None:
    """Print a table of the batch's figures, its errors, and where its files are."""
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(batch, report, engine):
        table.add_row(f"[bold]{name}[/]", value)
    console.print(table)
    for error in batch.errors.data[:SHOWN_ERRORS] if batch.errors else ():
        where = f"line {error.line}: " if error.line else ""
        console.print(f"  {where}{error.message} ({error.code})", markup=False, soft_wrap=True)


def _rows(batch: BatchResponse, report: BatchReport | None, engine: Engine) -> Iterator[tuple[str, str]]:
    colour = COLOURS.get(batch.status, "yellow")
    yield "batch", batch.id
    yield "status", f"[{colour}]{batch.status}[/]"
    counts = batch.request_counts
    yield "requests", f"{counts.total:,}: {counts.completed:,} completed, {counts.failed:,} failed"
    yield from _usage_rows(batch)
    if report is not None:
        yield from _report_rows(report)
    if batch.output_file_id and batch.status is not BatchStatus.IN_PROGRESS:
        yield "output", engine.store.uri(layout.output_key(batch.id))
    if batch.error_file_id and batch.status is not BatchStatus.IN_PROGRESS:
        yield "errors", engine.store.uri(layout.errors_key(batch.id))
    if report is not None:
        yield "figures", engine.store.uri(layout.requests_key(batch.id))


def _usage_rows(batch: BatchResponse) -> Iterator[tuple[str, str]]:
    usage = batch.analytics
    if usage is None:
        return
    reasoning = f" (reasoning {usage.total_reasoning_tokens:,})" if usage.total_reasoning_tokens else ""
    yield (
        "tokens",
        f"{usage.total_tokens:,}: prompt {usage.total_prompt_tokens:,}, completion "
        f"{usage.total_completion_tokens:,}{reasoning}",
    )
    yield "cost", usage.total_cost or "unknown (no price for every model; set BATCHLINE_PRICES)"


def _report_rows(report: BatchReport) -> Iterator[tuple[str, str]]:
    if report.duration_ms is not None:
        yield "latency", _percentiles(report.duration_ms)
    if report.ttfb_ms is not None:
        yield "first byte", _percentiles(report.ttfb_ms)
    if report.retries:
        yield "retries", _counts(report.retries)
    if report.failures:
        yield "failures", _counts(report.failures)
    if report.unpriced_models:
        yield "no price for", ", ".join(report.unpriced_models)


def _percentiles(points: Percentiles) -> str:
    return (
        f"p50 {_ms(points.p50)}, p90 {_ms(points.p90)}, p95 {_ms(points.p95)}, p99 {_ms(points.p99)}, "
        f"max {_ms(points.max)}"
    )


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 1_000 else f"{value / 1e3:.2f} s"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
