"""Validates a batch's input and splits it into chunks, unless an earlier run has done so."""

from collections.abc import Iterator

from batchline.models.errors import Interrupted
from batchline.models.plan import Plan
from batchline.models.status import TERMINAL_STATUSES
from batchline.steps.context import BatchContext
from batchline.steps.plans import read_plan, store_plan
from batchline.steps.transitions import end_if_expired_or_cancelled, fail_validation, start_sending
from batchline.steps.validate_lines import Validation, validate_lines

SLOT_POLL_INTERVAL_S = 0.5
"""Seconds between checks whether a batch that waits for validation should stop."""

INPUT_BLOCK_BYTES = 2**20


def validate(context: BatchContext) -> Plan | None:
    """Validate the input and split it into chunks, or read the stored plan; return None if the batch is over."""
    if context.batch.status in TERMINAL_STATUSES:
        return None
    if context.batch.in_progress_at is not None:
        return read_plan(context.store, context.batch)
    if end_if_expired_or_cancelled(context):
        return None
    try:
        validation = _check_input(context)
    except Interrupted:
        if end_if_expired_or_cancelled(context):
            return None
        raise
    if end_if_expired_or_cancelled(context):
        return None
    if validation.plan is None:
        fail_validation(context, validation.errors)
        return None
    plan = store_plan(context.store, validation.plan)
    return plan if start_sending(context, plan) else None


def _check_input(context: BatchContext) -> Validation:
    """Check the input once a slot is free; raises `LeaseLost` or `Interrupted` if the session is stopped."""
    batch, settings = context.batch, context.settings
    key = context.records.get_file(batch.input_file_id).key

    def blocks_until_stopped() -> Iterator[bytes]:
        for block in context.store.stream(key, block_bytes=INPUT_BLOCK_BYTES):
            _raise_if_stopped(context)
            yield block

    while not context.validation_slots.acquire(timeout=SLOT_POLL_INTERVAL_S):
        _raise_if_stopped(context)
    try:
        return validate_lines(
            blocks_until_stopped,
            batch_id=batch.id,
            input_key=key,
            endpoint=batch.endpoint,
            settings=settings,
            max_errors=settings.max_reported_errors,
        )
    finally:
        context.validation_slots.release()


def _raise_if_stopped(context: BatchContext) -> None:
    stopped = context.session.stop_reason
    if stopped is not None:
        context.raise_if_lost()
        raise Interrupted(f"batch {context.batch.id} stopped while its input was checked: {stopped.message}")
