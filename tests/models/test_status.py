"""The life of a batch: every pair of states, and the end that counts lead to."""

import pytest

from batchline.models.batches import BatchResponse
from batchline.models.status import (
    ACTIVE_STATUSES,
    TERMINAL_STATUSES,
    TRANSITIONS,
    BatchStatus,
    allowed_from,
    final_status,
    timestamp_field,
)

LEGAL = {
    ("validating", "in_progress"),
    ("validating", "failed"),
    ("validating", "expired"),
    ("validating", "cancelling"),
    ("validating", "cancelled"),
    ("in_progress", "finalizing"),
    ("in_progress", "cancelling"),
    ("finalizing", "completed"),
    ("finalizing", "failed"),
    ("finalizing", "expired"),
    ("cancelling", "cancelled"),
    # A retry leads out of every terminal state.
    ("completed", "in_progress"),
    ("failed", "in_progress"),
    ("expired", "in_progress"),
    ("cancelled", "in_progress"),
}


@pytest.mark.parametrize("target", BatchStatus)
def test_allowed_source_statuses_match_transition_table(target):
    assert allowed_from(target) == {current for current in BatchStatus if (current, target) in LEGAL}


def test_every_status_has_transitions():
    assert set(TRANSITIONS) == set(BatchStatus)


def test_every_status_is_either_terminal_or_active():
    assert (set(BatchStatus), set()) == (TERMINAL_STATUSES | ACTIVE_STATUSES, TERMINAL_STATUSES & ACTIVE_STATUSES)


def test_terminal_statuses_are_the_four_final_ones():
    assert {"completed", "failed", "expired", "cancelled"} == TERMINAL_STATUSES


@pytest.mark.parametrize("status", [status for status in BatchStatus if status is not BatchStatus.VALIDATING])
def test_status_timestamp_is_a_batch_field(status):
    assert timestamp_field(status) in BatchResponse.model_fields


def test_validating_has_no_timestamp_field():
    assert timestamp_field(BatchStatus.VALIDATING) is None


@pytest.mark.parametrize(
    ("completed", "expired", "cancelled", "status"),
    [
        (0, False, False, "failed"),
        (1, False, False, "completed"),
        (0, True, False, "expired"),
        (1, True, False, "expired"),
        (0, False, True, "cancelled"),
        (1, False, True, "cancelled"),
        (0, True, True, "cancelled"),
        (1, True, True, "cancelled"),
    ],
)
def test_final_status_follows_from_request_outcomes(completed, expired, cancelled, status):
    assert final_status(completed=completed, expired=expired, cancelled=cancelled) == status
