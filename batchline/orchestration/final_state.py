"""Translates the end of a batch into the final state of its flow run."""

from __future__ import annotations

from typing import Any, Final, cast

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from batchline.models.analytics import BatchReport
from batchline.models.batches import BatchResponse
from batchline.models.errors import BatchEnded
from batchline.models.status import BatchStatus
from batchline.report.formatting import failures_text, marks_text
from batchline.storage.records.store import BatchRecord

BATCH_ID_LABEL: Final = "batchline.batch_id"
"""The label of a flow run with its batch's id."""


def run_name(batch: BatchRecord) -> str:
    """Return the name of the batch's flow runs: file name and batch id."""
    return f"{batch.input_filename} {batch.id}"


def outcome_message(batch: BatchRecord, report: BatchReport | None) -> str:
    """Return a one-line description of a batch's outcome."""
    if batch.total:
        marks = marks_text(report)
        counts = f"{batch.completed:,} ok{f' ({marks})' if marks else ''}, {batch.failed:,} failed"
        counts += f", {batch.unanswered:,} not answered" if batch.unanswered else ""
        failures = failures_text(report)
        counts += f": {failures}" if failures and batch.not_completed else ""
    else:
        counts = "nothing was sent"
    if not batch.errors:
        return f"{batch.status}: {counts}"
    first = batch.errors[0]
    position = f"line {first.line}: " if first.line else ""
    more_errors = f" (and {len(batch.errors) - 1} more)" if len(batch.errors) > 1 else ""
    return f"{batch.status}: {position}{first.message}{more_errors}; {counts}"


def final_state(batch: BatchRecord, message: str) -> BatchResponse:
    """Return the flow run's final state for a finished batch, with the result or error for the flow's caller.

    Prefect uses a state that a flow returns as the run's own, and gives the caller the state's data.
    """
    state = flow_run_state(batch, message)
    error = BatchEnded(f"batch {batch.id} {message}", batch_id=batch.id, status=batch.status)
    state.data = batch.to_response(include_analytics=True) if state.is_completed() else error
    return cast("BatchResponse", state)


def flow_run_state(batch: BatchRecord, message: str) -> State[Any]:
    """Return the flow run's final state for a finished batch, without a result."""
    if batch.status is BatchStatus.COMPLETED:
        return Completed(message=message)
    return Cancelled(message=message) if batch.status is BatchStatus.CANCELLED else Failed(message=message)
