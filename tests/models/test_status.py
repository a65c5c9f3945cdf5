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
def test_the_sources_of_a_state_are_those_that_may_move_to_it(target):
    assert allowed_from(target) == {current for current in BatchStatus if (current, target) in LEGAL}


def test_every_state_has_its_moves():
    assert set(TRANSITIONS) == set(BatchStatus)


def test_a_state_is_either_terminal_or_active():
    assert (set(BatchStatus), set()) == (TERMINAL_STATUSES | ACTIVE_STATUSES, TERMINAL_STATUSES & ACTIVE_STATUSES)


def test_the_terminal_states_are_four():
    assert {"completed", "failed", "expired", "cancelled"} == TERMINAL_STATUSES


@pytest.mark.parametrize("status", [status for status in BatchStatus if status is not BatchStatus.VALIDATING])
def test_entering_a_state_sets_a_field_of_the_batch(status):
    assert timestamp_field(status) in BatchResponse.model_fields


def test_validating_sets_no_timestamp_beyond_created_at():
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
def test_how_the_requests_ended_decides_how_the_batch_ends(completed, expired, cancelled, status):
    assert final_status(completed=completed, expired=expired, cancelled=cancelled) == status
