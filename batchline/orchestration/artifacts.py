"""Publishes a batch's progress, outcome and metrics as artifacts on the flow run's page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run

from batchline.engine.lease import BatchLease
from batchline.engine.progress_meter import ProgressSnapshot
from batchline.engine.services import Services
from batchline.models.analytics import BatchReport, DurationBin
from batchline.models.batches import BatchError
from batchline.models.formatting import format_duration, format_rate, join_parts, shorten
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.orchestration.final_state import outcome_message
from batchline.orchestration.prefect_errors import log_failures
from batchline.report.formatting import MARK_ADVICE, MARK_MEANINGS, retry_command
from batchline.report.report_data import published_uris
from batchline.storage.records.store import BatchRecord

MAX_BAR_WIDTH = 30
"""Characters of the longest bar of a histogram."""

MAX_BINS = 24

MAX_LISTED_ERRORS = 100
"""Errors listed in the outcome; `batchline show` and `validate` print all of them."""


MAX_LISTED_REASONS = 20


class ProgressArtifact:
    """A progress bar on the flow run's page. Failures to show it are logged, never raised."""

    def __init__(self, batch_id: str, flow_run_id: str) -> None:
        self._key = f"{batch_id}-progress"
        self._flow_run_id = UUID(flow_run_id)
        self._id: UUID | None = None
        self._last_written: tuple[float, str] | None = None

    def show_progress(self, snapshot: ProgressSnapshot, client: SyncPrefectClient) -> None:
        """Show the batch's progress if it has changed."""
        counts = f"{snapshot.settled:,} of {snapshot.total:,} requests · {snapshot.failed:,} failed"
        text = join_parts(counts, snapshot.details, snapshot.eta, snapshot.paused)
        self._write_if_changed(round(100 * snapshot.settled / snapshot.total, 1), text, client)

    def show_end(self, lease: BatchLease) -> None:
        """Show the batch's final progress if progress was shown before."""
        if self._id is None:
            return
        batch, (completed, failed) = lease.batch, lease.counts()
        settled, total = completed + failed, batch.total
        text = f"stopped: {settled:,} of {total:,} requests · {failed:,} failed · answers are saved"
        if batch.status in TERMINAL_STATUSES:
            settled, text = batch.completed + batch.failed, outcome_message(batch, None)
        percent = 100.0 if batch.status is BatchStatus.COMPLETED else round(100 * settled / total, 1)
        with log_failures(f"{self._key} was not updated", logging.DEBUG), get_client(sync_client=True) as client:
            self._write_if_changed(percent, text, client)

    def _write_if_changed(self, percent: float, text: str, client: SyncPrefectClient) -> None:
        if self._last_written == (percent, text):
            return
        with log_failures(f"{self._key} was not updated", logging.DEBUG):
            if self._id is None:
                artifact = ArtifactCreate(
                    key=self._key, type="progress", description=text, data=percent, flow_run_id=self._flow_run_id
                )
                self._id = client.create_artifact(artifact).id
            else:
                client.update_artifact(self._id, ArtifactUpdate(data=percent, description=text))
            self._last_written = (percent, text)


def publish_outcome(
    services: Services, batch: BatchRecord, report: BatchReport | None, *, run_id: UUID | None = None
) -> None:
    """Publish the batch's outcome and metrics on the page of flow run `run_id`, or of the current one if None.

    Failures are logged and ignored.
    """
    flow_run_id = run_id or current_run_id()
    with log_failures(f"the outcome of {batch.id} was not published"), get_client(sync_client=True) as client:
        for artifact_type, key, description, data in (
            ("markdown", batch.id, outcome_message(batch, report), outcome_markdown(services, batch, report)),
            ("table", f"{batch.id}-figures", "Figures of the batch", json.dumps(metric_rows(batch, report))),
        ):
            artifact = ArtifactCreate(
                key=key, type=artifact_type, description=description, data=data, flow_run_id=flow_run_id
            )
            client.create_artifact(artifact)


def current_run_id() -> UUID | None:
    """Return the id of the current flow run, or None outside of one."""
    return UUID(str(flow_run.id)) if flow_run.id else None


def outcome_markdown(services: Services, batch: BatchRecord, report: BatchReport | None) -> str:
    """Return the outcome as Markdown: status, usage, durations, failures, models and files."""
    sections = [f"# {escape(batch.input_filename)}", f"**{escape(outcome_message(batch, report))}**"]
    sections.append(markdown_table("| | |\n|---|---|", _summary_rows(batch, report)))
    if batch.errors:
        sections += ["## Errors", errors_table(batch.errors)]
    if report is not None:
        if report.durations:
            sections += ["## How long requests took", _percentile_table(report), _histogram(report.durations)]
        sections += _marks_and_finish_reasons(batch, report)
        sections += _failures_and_models(report)
    files = [f"- {name}: `{uri}`" for name, uri in published_uris(services.store, batch).items()]
    if files:
        sections += ["## Files", "\n".join(files)]
    return "\n\n".join(sections) + "\n"


def markdown_table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; `head` has the line of names and the line of alignments."""
    return "\n".join([head, *(f"| {' | '.join(cells)} |" for cells in rows)])


def escape(value: str) -> str:
    """Escape untrusted text for a table cell or a line of Markdown."""
    one_line = " ".join(value.split())
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>()#+!|~" else character for character in one_line)


def _summary_rows(batch: BatchRecord, report: BatchReport | None) -> Iterator[tuple[str, str]]:
    yield "batch", f"`{batch.id}`"
    yield "endpoint", escape(batch.endpoint)
    unanswered = batch.total - batch.completed - batch.failed
    unanswered_text = f", {unanswered:,} not answered" if unanswered else ""
    yield "requests", f"{batch.total:,}: {batch.completed:,} ok, {batch.failed:,} failed{unanswered_text}"
    usage = batch.analytics
    if usage is not None and usage.total_requests:
        parts = f"prompt {usage.total_prompt_tokens:,}, completion {usage.total_completion_tokens:,}"
        yield "tokens", f"{usage.total_tokens:,}: {parts}"
        models = [model or "(none)" for model in report.unpriced_models] if report else []
        names = ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")
        yield "cost", usage.total_cost or f"no price is known for {escape(names)}"
    for name, option in (batch.options.given() if batch.options else {}).items():
        yield name.replace("_", " "), str(option)
    for name, value in (batch.metadata or {}).items():
        yield escape(name), escape(value)


def errors_table(errors: Sequence[BatchError]) -> str:
    """Return a Markdown table of the first errors; the last row counts the remaining ones."""
    rows = [
        (
            "" if error.line is None else f"{error.line:,}",
            *map(escape, (error.code or "", error.param or "", error.message)),
        )
        for error in errors[:MAX_LISTED_ERRORS]
    ]
    if len(errors) > MAX_LISTED_ERRORS:
        rows.append(("", "", "", f"and {len(errors) - MAX_LISTED_ERRORS:,} more"))
    return markdown_table("| line | code | parameter | what is wrong |\n|--:|---|---|---|", rows)


def _percentile_table(report: BatchReport) -> str:
    rows = {
        "whole request": report.duration_ms,
        "first byte": report.ttfb_ms,
        "waiting to be sent": report.queue_ms,
    }
    head = "| | median | 90 % | 95 % | 99 % | longest |\n|---|--:|--:|--:|--:|--:|"
    return markdown_table(
        head,
        (
            (name, *(format_duration(ms) for ms in percentiles.model_dump().values()))
            for name, percentiles in rows.items()
            if percentiles is not None
        ),
    )


def _histogram(bins: list[DurationBin]) -> str:
    """Return a text histogram of durations; adjacent bins are merged to at most `MAX_BINS` bars."""
    bins_per_bar = -(-len(bins) // MAX_BINS)
    groups = [bins[first : first + bins_per_bar] for first in range(0, len(bins), bins_per_bar)]
    counts = [sum(one_bin.completed + one_bin.failed for one_bin in group) for group in groups]
    peak = max(counts)
    labels = [format_duration(group[-1].to_ms) for group in groups]
    width = max(map(len, labels))
    # The count precedes the bar, as block characters have a different width in some fonts.
    lines = [
        f"up to {label:>{width}}  {count:>{len(f'{peak:,}')},}  {'█' * -(-count * MAX_BAR_WIDTH // peak)}"
        for label, count in zip(labels, counts, strict=True)
    ]
    return "\n".join(["```text", *lines, "```"])


def _marks_and_finish_reasons(batch: BatchRecord, report: BatchReport) -> Iterator[str]:
    if not report.marks and not report.finish_reasons:
        return
    yield "## How answers ended"
    if report.marks:
        marks = (
            (
                escape(mark),
                f"{count:,}",
                MARK_MEANINGS.get(mark, ""),
                f"{MARK_ADVICE.get(mark, 'Send them again')}: `{retry_command(batch.id, mark)}`",
            )
            for mark, count in report.marks.items()
        )
        yield markdown_table("| mark | answers | meaning | what to do |\n|---|--:|---|---|", marks)
    if report.finish_reasons:
        reasons = list(report.finish_reasons.items())[:MAX_LISTED_REASONS]
        rows = ((escape(shorten(reason, 60)), f"{count:,}") for reason, count in reasons)
        yield markdown_table("| finish reason | answers |\n|---|--:|", rows)


def _failures_and_models(report: BatchReport) -> Iterator[str]:
    if report.failures:
        yield "## What failed"
        statuses = {
            code: ", ".join(f"{status or 'no answer'}: {number:,}" for status, number in counts.items())
            for code, counts in report.failure_statuses.items()
        }
        messages = {code: escape(shorten(found.message, 300)) for code, found in report.failure_messages.items()}
        failures = (
            (code, f"{count:,}", statuses.get(code, ""), messages.get(code, ""))
            for code, count in report.failures.items()
        )
        head = "| code | requests | HTTP statuses | most frequent message |\n|---|--:|---|---|"
        yield markdown_table(head, failures)
    if report.models:
        yield "## Models"
        head = "| model | requests | failed | prompt | completion | cost |\n|---|--:|--:|--:|--:|--:|"
        numbers = ("requests", "failed", "prompt_tokens", "completion_tokens")
        yield markdown_table(
            head,
            (
                (
                    escape(metrics.model or "(none)"),
                    *(f"{getattr(metrics, name):,}" for name in numbers),
                    metrics.cost or "no price",
                )
                for metrics in report.models[:50]
            ),
        )


def metric_rows(batch: BatchRecord, report: BatchReport | None) -> list[dict[str, Any]]:
    """Return the metrics as rows of a table with name and value."""
    rows: dict[str, Any] = {"status": batch.status.value, "requests": batch.total}
    rows |= {"completed": batch.completed, "failed": batch.failed, "not answered": batch.unanswered}
    if batch.analytics is not None:
        rows |= batch.analytics.model_dump(mode="json", exclude_none=True)
    if report is not None:
        for name, percentiles in (("duration", report.duration_ms), ("first byte", report.ttfb_ms)):
            if percentiles is not None:
                rows |= {
                    f"{name} {percentile}, ms": round(ms, 1) for percentile, ms in percentiles.model_dump().items()
                }
        rows |= {"attempts": report.attempts, "wasted tokens": report.wasted_tokens}
        rows |= {f"retried for {reason}": count for reason, count in report.retries.items()}
        rows |= {f"failed: {code}": count for code, count in report.failures.items()}
        if report.requests_per_s is not None:
            rows["rate"] = format_rate(report.requests_per_s)
    return [{"figure": name.replace("_", " "), "value": value} for name, value in rows.items()]
