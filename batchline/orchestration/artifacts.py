"""What a flow run shows of its batch on Prefect's pages: its progress, and at the end outcome and figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run

from batchline.models.analytics import BatchReport, DurationBin, Percentiles
from batchline.models.batches import BatchError, BatchResponse
from batchline.models.formatting import duration, speed
from batchline.models.status import TERMINAL, BatchStatus
from batchline.orchestration.outcome import outcome_message
from batchline.steps.engine import Engine
from batchline.steps.hold import BatchHold
from batchline.steps.meter import Reading
from batchline.storage import layout
from batchline.storage.records import BatchRecord

log = logging.getLogger(__name__)

BAR = 30
"""Characters of the longest bar of a picture."""

MOST_BINS = 24

MOST_ERRORS = 100
"""Errors listed in the outcome; `batchline show` and `validate` print all of them."""


class ProgressArtifact:
    """A progress bar on the flow run's page. It never fails a batch."""

    def __init__(self, batch_id: str, flow_run_id: str) -> None:
        self._key = f"{batch_id}-progress"
        self._flow_run_id = UUID(flow_run_id)
        self._id: UUID | None = None
        self._shown: tuple[float, str] | None = None

    def show(self, reading: Reading, client: SyncPrefectClient) -> None:
        """Show how far the batch has come, where that has changed."""
        self._put(round(100 * reading.settled / reading.total, 1), _progress(reading), client)

    def end(self, hold: BatchHold) -> None:
        """Show the last state of the batch, if progress was shown before."""
        if self._id is None:
            return
        batch, (completed, failed) = hold.batch, hold.counts()
        settled, total = completed + failed, batch.total
        words = f"stopped: {settled:,} of {total:,} requests · {failed:,} failed · answers are saved"
        if batch.status in TERMINAL:
            settled, words = batch.completed + batch.failed, outcome_message(batch, None)
        percent = 100.0 if batch.status is BatchStatus.COMPLETED else round(100 * settled / total, 1)
        try:
            with get_client(sync_client=True) as client:
                self._put(percent, words, client)
        except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
            log.debug("the end of %s was not shown: %s", self._key, error)

    def _put(self, percent: float, words: str, client: SyncPrefectClient) -> None:
        if self._shown == (percent, words):
            return
        try:
            self._write(percent, words, client)
        except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
            log.debug("progress of %s was not shown: %s", self._key, error)
        else:
            self._shown = (percent, words)

    def _write(self, percent: float, words: str, client: SyncPrefectClient) -> None:
        if self._id is not None:
            client.update_artifact(self._id, ArtifactUpdate(data=percent, description=words))
            return
        made = ArtifactCreate(
            key=self._key, type="progress", description=words, data=percent, flow_run_id=self._flow_run_id
        )
        self._id = client.create_artifact(made).id


def _progress(reading: Reading) -> str:
    done = f"{reading.settled:,} of {reading.total:,} requests · {reading.failed:,} failed"
    return " · ".join(part for part in (done, reading.details, reading.left, reading.paused) if part)


def show_end(
    engine: Engine, batch: BatchRecord, report: BatchReport | None, *, run_id: UUID | None = None
) -> None:
    """Put the batch's outcome and figures on the page of that flow run, or of the one that executes this.

    What fails is logged and left.
    """
    shown_on = run_id or this_run()
    try:
        with get_client(sync_client=True) as client:
            for kind, key, words, data in (
                ("markdown", batch.id, outcome_message(batch, report), outcome_page(engine, batch, report)),
                ("table", f"{batch.id}-figures", "Figures of the batch", json.dumps(figures(batch, report))),
            ):
                made = ArtifactCreate(key=key, type=kind, description=words, data=data, flow_run_id=shown_on)
                client.create_artifact(made)
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("the outcome of %s was not put on the flow run's page: %s", batch.id, error)


def this_run() -> UUID | None:
    """The id of the flow run that executes this, or None outside of one."""
    return UUID(str(flow_run.id)) if flow_run.id else None


def outcome_page(engine: Engine, batch: BatchRecord, report: BatchReport | None) -> str:
    """The outcome as Markdown: how it ended, what it used, how long requests took, what failed, and its files."""
    blocks = [f"# {cell(batch.input_filename)}", f"**{cell(outcome_message(batch, report))}**"]
    blocks.append("\n".join(_about(batch, report)))
    if batch.errors:
        blocks += ["## Errors", "\n".join(errors_table(batch.errors))]
    if report is not None and report.durations:
        blocks += ["## How long requests took", _points(report), _picture(report.durations)]
    if report is not None and report.failures:
        blocks += ["## What failed", "\n".join(_failures(report))]
    if report is not None and report.models:
        blocks += ["## Models", "\n".join(_models(report))]
    files = _files(engine, batch)
    if files:
        blocks += ["## Files", "\n".join(files)]
    return "\n\n".join(blocks) + "\n"


def _about(batch: BatchRecord, report: BatchReport | None) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    yield f"| batch | `{batch.id}` |"
    for name, value in _summary(batch.to_response(include_analytics=True), report):
        yield f"| {name} | {cell(value)} |"
    for name, value in (batch.metadata or {}).items():
        yield f"| {cell(name)} | {cell(value)} |"


def _summary(batch: BatchResponse, report: BatchReport | None) -> Iterator[tuple[str, str]]:
    yield "endpoint", batch.endpoint
    counts, usage = batch.request_counts, batch.analytics
    unanswered = counts.total - counts.completed - counts.failed
    rest = f", {unanswered:,} not answered" if unanswered else ""
    yield "requests", f"{counts.total:,}: {counts.completed:,} ok, {counts.failed:,} failed{rest}"
    if usage is not None and usage.total_requests:
        tokens = f"{usage.total_tokens:,}: prompt {usage.total_prompt_tokens:,}, completion "
        yield "tokens", tokens + f"{usage.total_completion_tokens:,}"
        yield "cost", usage.total_cost or f"no price is known for {_unpriced(report)}"


def errors_table(errors: Sequence[BatchError]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the first errors; the last says how many more there are."""
    yield "| line | code | parameter | what is wrong |"
    yield "|--:|---|---|---|"
    for each in errors[:MOST_ERRORS]:
        line = "" if each.line is None else f"{each.line:,}"
        yield f"| {line} | {cell(each.code or '')} | {cell(each.param or '')} | {cell(each.message)} |"
    if len(errors) > MOST_ERRORS:
        yield f"| | | | and {len(errors) - MOST_ERRORS:,} more |"


def _unpriced(report: BatchReport | None) -> str:
    models = [model or "(none)" for model in report.unpriced_models] if report else []
    return ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")


def _points(report: BatchReport) -> str:
    rows = [
        ("whole request", report.duration_ms),
        ("first byte", report.ttfb_ms),
        ("waiting to be sent", report.queue_ms),
    ]
    head = "| | median | 90 % | 95 % | 99 % | longest |\n|---|--:|--:|--:|--:|--:|"
    lines = [f"| {name} | {' | '.join(_times(points))} |" for name, points in rows if points is not None]
    return "\n".join([head, *lines])


def _times(points: Percentiles) -> list[str]:
    return [duration(ms) for ms in (points.p50, points.p90, points.p95, points.p99, points.max)]


def _picture(bins: list[DurationBin]) -> str:
    """A bar for each stretch of durations; several together where there are many."""
    together = -(-len(bins) // MOST_BINS)
    groups = [bins[at : at + together] for at in range(0, len(bins), together)]
    counts = [sum(each.completed + each.failed for each in group) for group in groups]
    most = max(counts)
    ends = [duration(group[-1].to_ms) for group in groups]
    width = max(map(len, ends))
    # The count comes before the bar, whose characters are of another width in some fonts.
    lines = [
        f"up to {end:>{width}}  {count:>{len(f'{most:,}')},}  {'█' * -(-count * BAR // most)}"
        for end, count in zip(ends, counts, strict=True)
    ]
    return "\n".join(["```text", *lines, "```"])


def _failures(report: BatchReport) -> Iterator[str]:
    yield "| code | requests | HTTP statuses |"
    yield "|---|--:|---|"
    for code, count in report.failures.items():
        statuses = report.failure_statuses.get(code, {})
        told = ", ".join(f"{status or 'no answer'}: {number:,}" for status, number in statuses.items())
        yield f"| {code} | {count:,} | {told} |"


def _models(report: BatchReport) -> Iterator[str]:
    yield "| model | requests | failed | prompt | completion | cost |"
    yield "|---|--:|--:|--:|--:|--:|"
    for each in report.models[:50]:
        numbers = (each.requests, each.failed, each.prompt_tokens, each.completion_tokens)
        told = " | ".join(f"{number:,}" for number in numbers)
        yield f"| {cell(each.model or '(none)')} | {told} | {each.cost or 'no price'} |"


def _files(engine: Engine, batch: BatchRecord) -> list[str]:
    if batch.final_prefix is None:
        return []
    keys = [
        ("report", layout.report_page_key(batch.id), batch.id),
        ("output", layout.output_key(batch.id), batch.output_file_id),
        ("errors", layout.errors_key(batch.id), batch.error_file_id),
        ("figures of each request", layout.requests_key(batch.id), batch.id),
    ]
    return [f"- {name}: `{engine.store.uri(key)}`" for name, key, file_id in keys if file_id]


def cell(value: str) -> str:
    """Foreign text inside a table's cell or a line of Markdown."""
    plain = " ".join(value.split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+!|~" else letter for letter in plain)


def figures(batch: BatchRecord, report: BatchReport | None) -> list[dict[str, Any]]:
    """Each figure with its name, as the rows of a table."""
    rows: dict[str, Any] = {"status": batch.status.value, "requests": batch.total}
    rows |= {"completed": batch.completed, "failed": batch.failed, "not answered": batch.unanswered}
    if batch.analytics is not None:
        rows |= batch.analytics.model_dump(mode="json", exclude_none=True)
    if report is not None:
        for name, points in (("duration", report.duration_ms), ("first byte", report.ttfb_ms)):
            if points is not None:
                rows |= {f"{name} {point}, ms": round(ms, 1) for point, ms in points.model_dump().items()}
        rows |= {"attempts": report.attempts, "wasted tokens": report.wasted_tokens}
        rows |= {f"retried for {reason}": count for reason, count in report.retries.items()}
        rows |= {f"failed: {code}": count for code, count in report.failures.items()}
        if report.requests_per_s is not None:
            rows["rate"] = speed(report.requests_per_s)
    return [{"figure": name.replace("_", " "), "value": value} for name, value in rows.items()]
