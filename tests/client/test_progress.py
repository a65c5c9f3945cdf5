"""Progress of unfinished batches: speed, time left, and the reason for a standstill."""

import time

import msgspec
import pytest
from helpers.polling import until

from batchline import Batchline
from batchline.client.progress import ProgressTracker, runner_state
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord

HELD = {"lease_owner": "a:1:x", "lease_at": 1_000.0}


def record(**fields: object) -> BatchRecord:
    known = {"id": "batch-1", "status": BatchStatus.IN_PROGRESS, "endpoint": "/v1/x", "input_file_id": "file-1"}
    more = {"input_filename": "x", "completion_window": "24h", "created_at": 1, "expires_at": 2}
    return BatchRecord(**{**known, **more, **fields})


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({**HELD}, ""),
        ({"status": BatchStatus.COMPLETED}, ""),
        ({**HELD, "lease_at": 1.0}, "runner died"),
        ({"status": BatchStatus.VALIDATING}, "waiting"),
        ({}, "stopped"),
    ],
    ids=["it runs", "over", "silent", "not begun", "let go"],
)
def test_runner_state_explains_inactive_batch(fields, note):
    assert runner_state(record(**fields), now=1_010, lease_s=60) == note


@pytest.fixture
def watch(make_services) -> ProgressTracker:
    return ProgressTracker(make_services("http://127.0.0.1:9/v1"))


def test_speed_before_tracking_is_average_since_start(watch):
    run = {**HELD, "lease_at": time.time(), "in_progress_at": int(time.time()) - 50}
    seen = watch.snapshot(record(total=1_000, completed=90, failed=10, **run))
    assert (seen.settled, seen.session) == (100, None)
    assert seen.per_s == pytest.approx(2, rel=0.1)
    assert seen.eta_s == pytest.approx(450, rel=0.1)


def test_batch_without_runner_has_no_eta(watch):
    seen = watch.snapshot(record(total=1_000, completed=100, in_progress_at=int(time.time()) - 50))
    assert (seen.note, seen.eta_s) == ("stopped", None)


def test_speed_while_tracked_is_recent_speed(watch):
    batch = record(total=1_000, completed=100, in_progress_at=int(time.time()) - 1_000)
    watch.snapshot(batch)
    time.sleep(1.2)
    seen = watch.snapshot(msgspec.structs.replace(batch, completed=700))
    assert seen.per_s is not None
    assert seen.per_s > 100


@pytest.mark.parametrize(
    "fields", [{"generation": 1}, {"in_progress_at": None}, {"status": BatchStatus.FINALIZING}]
)
def test_unknown_speed_is_not_reported(fields, watch):
    seen = watch.snapshot(record(**{"total": 9, "completed": 5, "in_progress_at": 1, **fields}))
    assert (seen.per_s, seen.eta_s) == (None, None)


def test_progress_in_running_process_includes_live_counts(start_simulator, make_services, chat_file):
    services = make_services(start_simulator(latency_s=0.3).base_url)
    with Batchline(services=services) as client:
        file = client.files.create(file=chat_file(2_000))
        batch = client.batches.create(input_file_id=file.id)
        watch = ProgressTracker(services)

        def some() -> bool:
            run = watch.snapshot(client.batches.record(batch.id)).session
            return run is not None and run.completed > 0

        until(some)
        client.batches.cancel(batch.id)
