"""Publishes a batch's progress, outcome and metrics as artifacts on the flow run's page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run

from batchline.engine.lease import BatchLease
from batchline.engine.progress_meter import ProgressSnapshot
from batchline.engine.services import Services
from batchline.models.analytics import BatchReport, DurationBin, Percentiles
from batchline.models.batches import BatchError, BatchResponse
from batchline.models.formatting import duration, speed
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.orchestration.final_state import outcome_message
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord

log = logging.getLogger(__name__)

MAX_BAR_WIDTH = 30
"""Characters of the longest bar of a histogram."""

MAX_BINS = 24

MAX_LISTED_ERRORS = 100
"""Errors listed in the outcome; `batchline show` and `validate` print all of them."""


class ProgressArtifact:
    """A progress bar on the flow run's page. Failures to show it are logged, never raised."""

    def __init__(self, batch_id: str, flow_run_id: str) -> None:
        self._key = f"{batch_id}-progress"
        self._flow_run_id = UUID(flow_run_id)
        self._id: UUID | None = None
        self._last_written: tuple[float, str] | None = None

    def show_progress(self, snapshot: ProgressSnapshot, client: SyncPrefectClient) -> None:
        """Show the batch's progress if it has changed."""
        self._write_if_changed(round(100 * snapshot.settled / snapshot.total, 1), _progress_text(snapshot), client)

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
        try:
            with get_client(sync_client=True) as client:
                self._write_if_changed(percent, text, client)
        except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
            log.debug("the end of %s was not shown: %s", self._key, error)

    def _write_if_changed(self, percent: float, text: str, client: SyncPrefectClient) -> None:
        if self._last_written == (percent, text):
            return
        try:
            self._write_artifact(percent, text, client)
        except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
            log.debug("progress of %s was not shown: %s", self._key, error)
        else:
            self._last_written = (percent, text)

    def _write_artifact(self, percent: float, text: str, client: SyncPrefectClient) -> None:
        if self._id is not None:
            client.update_artifact(self._id, ArtifactUpdate(data=percent, description=text))
            return
        artifact = ArtifactCreate(
            key=self._key, type="progress", description=text, data=percent, flow_run_id=self._flow_run_id
        )
        self._id = client.create_artifact(artifact).id


def _progress_text(snapshot: ProgressSnapshot) -> str:
    counts = f"{snapshot.settled:,} of {snapshot.total:,} requests · {snapshot.failed:,} failed"
    return " · ".join(part for part in (counts, snapshot.details, snapshot.eta, snapshot.paused) if part)


def publish_outcome(
    services: Services, batch: BatchRecord, report: BatchReport | None, *, run_id: UUID | None = None
) -> None:
    """Publish the batch's outcome and metrics on the page of flow run `run_id`, or of the current one if None.

    Failures are logged and ignored.
    """
    flow_run_id = run_id or current_run_id()
    try:
        with get_client(sync_client=True) as client:
            for artifact_type, key, description, data in (
                ("markdown", batch.id, outcome_message(batch, report), outcome_markdown(services, batch, report)),
                ("table", f"{batch.id}-figures", "Figures of the batch", json.dumps(metric_rows(batch, report))),
            ):
                artifact = ArtifactCreate(
                    key=key, type=artifact_type, description=description, data=data, flow_run_id=flow_run_id
                )
                client.create_artifact(artifact)
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("the outcome of %s was not put on the flow run's page: %s", batch.id, error)


def current_run_id() -> UUID | None:
    """Return the id of the current flow run, or None outside of one."""
    return UUID(str(flow_run.id)) if flow_run.id else None


def outcome_markdown(services: Services, batch: BatchRecord, report: BatchReport | None) -> str:
    """Return the outcome as Markdown: status, usage, durations, failures, models and files."""
    sections = [f"# {escape(batch.input_filename)}", f"**{escape(outcome_message(batch, report))}**"]
    sections.append("\n".join(_batch_table(batch, report)))
    if batch.errors:
        sections += ["## Errors", "\n".join(errors_table(batch.errors))]
    if report is not None and report.durations:
        sections += ["## How long requests took", _percentile_table(report), _text_histogram(report.durations)]
    if report is not None and report.failures:
        sections += ["## What failed", "\n".join(_failure_table(report))]
    if report is not None and report.models:
        sections += ["## Models", "\n".join(_model_table(report))]
    files = _file_list(services, batch)
    if files:
        sections += ["## Files", "\n".join(files)]
    return "\n\n".join(sections) + "\n"


def _batch_table(batch: BatchRecord, report: BatchReport | None) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    yield f"| batch | `{batch.id}` |"
    for name, value in _summary_rows(batch.to_response(include_analytics=True), report):
        yield f"| {name} | {escape(value)} |"
    for name, value in (batch.metadata or {}).items():
        yield f"| {escape(name)} | {escape(value)} |"


def _summary_rows(batch: BatchResponse, report: BatchReport | None) -> Iterator[tuple[str, str]]:
    yield "endpoint", batch.endpoint
    counts, analytics = batch.request_counts, batch.analytics
    unanswered = counts.total - counts.completed - counts.failed
    unanswered_text = f", {unanswered:,} not answered" if unanswered else ""
    yield "requests", f"{counts.total:,}: {counts.completed:,} ok, {counts.failed:,} failed{unanswered_text}"
    if analytics is not None and analytics.total_requests:
        tokens = f"{analytics.total_tokens:,}: prompt {analytics.total_prompt_tokens:,}, completion "
        yield "tokens", tokens + f"{analytics.total_completion_tokens:,}"
        yield "cost", analytics.total_cost or f"no price is known for {_unpriced_models(report)}"


def errors_table(errors: Sequence[BatchError]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the first errors; the last line counts the remaining ones."""
    yield "| line | code | parameter | what is wrong |"
    yield "|--:|---|---|---|"
    for error in errors[:MAX_LISTED_ERRORS]:
        line = "" if error.line is None else f"{error.line:,}"
        yield f"| {line} | {escape(error.code or '')} | {escape(error.param or '')} | {escape(error.message)} |"
    if len(errors) > MAX_LISTED_ERRORS:
        yield f"| | | | and {len(errors) - MAX_LISTED_ERRORS:,} more |"


def _unpriced_models(report: BatchReport | None) -> str:
    models = [model or "(none)" for model in report.unpriced_models] if report else []
    return ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")


def _percentile_table(report: BatchReport) -> str:
    rows = [
        ("whole request", report.duration_ms),
        ("first byte", report.ttfb_ms),
        ("waiting to be sent", report.queue_ms),
    ]
    head = "| | median | 90 % | 95 % | 99 % | longest |\n|---|--:|--:|--:|--:|--:|"
    lines = [
        f"| {name} | {' | '.join(_percentile_texts(percentiles))} |"
        for name, percentiles in rows
        if percentiles is not None
    ]
    return "\n".join([head, *lines])


def _percentile_texts(percentiles: Percentiles) -> list[str]:
    return [
        duration(ms)
        for ms in (percentiles.p50, percentiles.p90, percentiles.p95, percentiles.p99, percentiles.max)
    ]


def _text_histogram(bins: list[DurationBin]) -> str:
    """Return a text histogram of durations; adjacent bins are merged to at most `MAX_BINS` bars."""
    bins_per_bar = -(-len(bins) // MAX_BINS)
    groups = [bins[first : first + bins_per_bar] for first in range(0, len(bins), bins_per_bar)]
    counts = [sum(one_bin.completed + one_bin.failed for one_bin in group) for group in groups]
    peak = max(counts)
    labels = [duration(group[-1].to_ms) for group in groups]
    width = max(map(len, labels))
    # The count precedes the bar, as block characters have a different width in some fonts.
    lines = [
        f"up to {label:>{width}}  {count:>{len(f'{peak:,}')},}  {'█' * -(-count * MAX_BAR_WIDTH // peak)}"
        for label, count in zip(labels, counts, strict=True)
    ]
    return "\n".join(["```text", *lines, "```"])


def _failure_table(report: BatchReport) -> Iterator[str]:
    yield "| code | requests | HTTP statuses |"
    yield "|---|--:|---|"
    for code, count in report.failures.items():
        statuses = report.failure_statuses.get(code, {})
        statuses_text = ", ".join(f"{status or 'no answer'}: {number:,}" for status, number in statuses.items())
        yield f"| {code} | {count:,} | {statuses_text} |"


def _model_table(report: BatchReport) -> Iterator[str]:
    yield "| model | requests | failed | prompt | completion | cost |"
    yield "|---|--:|--:|--:|--:|--:|"
    for metrics in report.models[:50]:
        numbers = (metrics.requests, metrics.failed, metrics.prompt_tokens, metrics.completion_tokens)
        counts = " | ".join(f"{number:,}" for number in numbers)
        yield f"| {escape(metrics.model or '(none)')} | {counts} | {metrics.cost or 'no price'} |"


def _file_list(services: Services, batch: BatchRecord) -> list[str]:
    if batch.final_prefix is None:
        return []
    listed = [
        ("report", layout.report_page_key(batch.id), batch.id),
        ("output", layout.output_key(batch.id), batch.output_file_id),
        ("errors", layout.errors_key(batch.id), batch.error_file_id),
        ("figures of each request", layout.requests_key(batch.id), batch.id),
    ]
    return [f"- {name}: `{services.store.uri(key)}`" for name, key, file_id in listed if file_id]


def escape(value: str) -> str:
    """Escape untrusted text for a table cell or a line of Markdown."""
    one_line = " ".join(value.split())
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>()#+!|~" else character for character in one_line)


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
            rows["rate"] = speed(report.requests_per_s)
    return [{"figure": name.replace("_", " "), "value": value} for name, value in rows.items()]
