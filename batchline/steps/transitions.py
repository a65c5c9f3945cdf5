"""Changes the status of a batch, from `validating` to `finalizing`."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from batchline.models.batches import BatchError
from batchline.models.error_codes import ErrorCode
from batchline.models.errors import Conflict, LeaseLost
from batchline.models.ids import new_file_id
from batchline.models.plan import Plan
from batchline.models.status import BatchStatus
from batchline.steps.context import BatchContext
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord, FileChanges, FileRecord


def end_if_expired_or_cancelled(context: BatchContext) -> bool:
    """End a batch that was cancelled, or whose window closed, before it started; return True if it has ended.

    The window of a batch that is paused stands still; it ends if it was paused for too long.
    """
    stopped, deadline = context.session.stop_reason, context.session.deadline
    if stopped is not None and stopped.code is ErrorCode.BATCH_CANCELLED:
        move_from_validating(context, BatchStatus.CANCELLED)
        return True
    is_over = deadline is not None and time.time() >= deadline
    if is_over or (stopped is not None and stopped.code is ErrorCode.BATCH_EXPIRED):
        batch = context.records.get_batch(context.batch.id)
        if batch.is_waiting(now=context.records.now(), max_paused_s=context.settings.max_paused_s):
            return False
        move_from_validating(context, BatchStatus.EXPIRED)
        return True
    return False


def fail_validation(context: BatchContext, errors: Sequence[BatchError]) -> None:
    """End the batch as `failed` with the validation errors; nothing was sent."""
    move_from_validating(context, BatchStatus.FAILED, errors=tuple(errors), total=0, completed=0, failed=0)


def start_sending(context: BatchContext, plan: Plan) -> bool:
    """Make the batch `in_progress`; return False if it was cancelled meanwhile, and is now `cancelled`."""
    batch, now = context.batch, int(time.time())
    output_file, error_file = new_output_file(batch, now=now), new_error_file(batch, now=now)
    return move_from_validating(
        context,
        BatchStatus.IN_PROGRESS,
        file_changes=FileChanges(added=(output_file, error_file)),
        total=plan.total,
        model=(plan.models[0] or None) if len(plan.models) == 1 else None,
        output_file_id=output_file.id,
        error_file_id=error_file.id,
    )


def move_from_validating(context: BatchContext, target: BatchStatus, **changes: Any) -> bool:
    """Change the status; return False if a cancel came first, in which case the batch is now `cancelled`."""
    try:
        _change_status(context, target, **changes)
    except Conflict:
        if context.records.get_batch(context.batch.id).status is not BatchStatus.CANCELLING:
            raise
        # Nothing was sent yet, so the cancel takes effect at once.
        _change_status(context, BatchStatus.CANCELLED)
        return False
    return True


def cancel_sending(context: BatchContext, *reasons: BatchError) -> None:
    """Make the batch `cancelling` for these reasons; one that is `finalizing` or `cancelling` stays as it is."""
    with suppress(Conflict):
        _change_status(context, BatchStatus.CANCELLING, **({"errors": reasons} if reasons else {}))


def finalize(context: BatchContext) -> None:
    """Make the batch `finalizing` with its current counts; one that is being cancelled stays `cancelling`."""
    completed, failed = context.counts()
    try:
        _change_status(context, BatchStatus.FINALIZING, completed=completed, failed=failed)
    except LeaseLost:  # a kind of `Conflict`
        raise
    except Conflict:
        context.batch = context.records.get_batch(context.batch.id)
        if context.batch.status not in {BatchStatus.FINALIZING, BatchStatus.CANCELLING}:
            raise


def _change_status(context: BatchContext, target: BatchStatus, **changes: Any) -> None:
    context.batch = context.records.change_status(
        context.batch.id, target, now=int(time.time()), lease=context.claim, **changes
    )


def new_output_file(batch: BatchRecord, *, now: int) -> FileRecord:
    """Build the record of a batch's output file, still empty."""
    return _new_file(batch, layout.output_key(batch.id), now)


def new_error_file(batch: BatchRecord, *, now: int) -> FileRecord:
    """Build the record of a batch's error file, still empty."""
    return _new_file(batch, layout.errors_key(batch.id), now)


def _new_file(batch: BatchRecord, key: str, now: int) -> FileRecord:
    expires_after = batch.output_expires_after
    return FileRecord(
        id=new_file_id(),
        purpose="batch_output",
        filename=f"{batch.id}_{key.rpartition('/')[2]}",
        size_bytes=0,
        created_at=now,
        expires_at=None if expires_after is None else now + expires_after,
        key=key,
        status="uploaded",
        member_id=batch.member_id,
    )
