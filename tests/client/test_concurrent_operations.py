"""Concurrent operations on one batch: one succeeds, the others get a conflict, and the records stay consistent."""

import threading
from collections.abc import Callable

import pytest
from helpers.concurrency import in_processes, in_threads
from helpers.polling import until
from helpers.request_files import read_lines, request_numbers, write_requests

from batchline import Batchline
from batchline.engine.services import Services
from batchline.models.batches import BatchResponse
from batchline.models.error_codes import UNANSWERED_CODES
from batchline.models.errors import BatchlineError, Conflict, NotFound
from batchline.models.settings import Settings
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.storage.records.store import Lease, Records

ROUNDS = 4


def made(here, tmp_path, count=30, prompt="Question {}?".format):
    file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", count, prompt=prompt))
    return here.client.batches.create(input_file_id=file.id, via=None)


def failed(here, tmp_path, count=12):
    batch = made(here, tmp_path, count, prompt="simulate:status=400 {}".format)
    return here.client.batches.run(batch.id)


def assert_sound(here, batch_id: str, count: int) -> None:
    """Check that the batch has ended, each request is in one of its files, and the counts add up."""
    batch = here.client.batches.retrieve(batch_id)
    assert batch.status in TERMINAL_STATUSES
    output, errors = read_lines(here.client, batch.output_file_id), read_lines(here.client, batch.error_file_id)
    assert sorted(request_numbers(output) + request_numbers(errors)) == (
        list(range(count)) if output or errors else []
    )
    failed = [line for line in errors if line["error"]["code"] not in UNANSWERED_CODES]
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(failed))


def kinds(done: list[object]) -> list[str]:
    return sorted(type(each).__name__ for each in done)


def operate(number: int, settings: Settings, verb: str, batch_id: str) -> object:
    """Do it in a process of its own; top-level, so that such a process finds it."""
    del number
    with Batchline(settings) as client:
        options = {"via": None} if verb == "retry" else {}
        return getattr(client.batches, verb)(batch_id, **options)


def at_once(here, verb: str, batch_id: str, *, apart: bool) -> list[object]:
    """Return the results of two callers at the same moment, each in a thread or a process."""
    if apart:
        return in_processes(2, operate, here.client.services.settings, verb, batch_id)
    options = {"via": None} if verb == "retry" else {}
    return in_threads(2, lambda _: getattr(here.client.batches, verb)(batch_id, **options))


apart_or_not = pytest.mark.parametrize(
    "apart", [False, pytest.param(True, marks=pytest.mark.system)], ids=["threads", "processes"]
)


@apart_or_not
def test_concurrent_retries_one_succeeds(apart, make_client, tmp_path):
    here = make_client()
    for _ in range(1 if apart else ROUNDS):
        batch = failed(here, tmp_path)
        done = at_once(here, "retry", batch.id, apart=apart)
        assert kinds(done) == ["BatchResponse", "Conflict"]
        assert here.client.batches.record(batch.id).generation == 1

        here.client.batches.run(batch.id)
        assert_sound(here, batch.id, 12)


@apart_or_not
def test_concurrent_runs_send_each_request_once(apart, make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.05}, upstream={"max_in_flight": 4})
    batch = made(here, tmp_path)

    done = at_once(here, "run", batch.id, apart=apart)

    assert "BatchResponse" in kinds(done)
    assert set(kinds(done)) <= {"BatchResponse", "Conflict"}
    assert here.simulator.counters()["received"] == 30
    assert_sound(here, batch.id, 30)


@apart_or_not
def test_concurrent_cancels_of_running_batch_both_succeed(apart, make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.1}, upstream={"max_in_flight": 2}, lease_s=4.0)
    batch = made(here, tmp_path, 300)
    here.client.batches.resume(batch.id)
    until(lambda: here.simulator.counters()["received"])

    done = at_once(here, "cancel", batch.id, apart=apart)

    assert kinds(done) == ["BatchResponse"] * 2
    assert len({each.cancelling_at for each in done}) == 1
    assert here.client.batches.wait(batch.id, timeout_s=30).status == "cancelled"
    assert_sound(here, batch.id, 300)


def race(*acts: Callable[[], object]) -> list[object]:
    """Return the results of the calls, made at the same moment."""
    return in_threads(len(acts), lambda number: acts[number]())


def test_cancel_at_batch_end_takes_effect_or_is_rejected(make_client, tmp_path):
    here = make_client(upstream={"max_in_flight": 2})
    batches = here.client.batches
    seen = set()
    for number in range(12):
        batch = made(here, tmp_path, 3 + number)

        def cancel(batch_id: str = batch.id, later_s: float = number * 0.01) -> BatchResponse:
            threading.Event().wait(later_s)
            return batches.cancel(batch_id)

        ran, cancelled = race(lambda batch_id=batch.id: batches.run(batch_id), cancel)

        assert isinstance(ran, BatchResponse | Conflict)
        if isinstance(ran, Conflict):  # the cancel had the lease for the moment that it took to end it
            batches.run(batch.id)
        status = batches.retrieve(batch.id).status
        assert status == ("completed" if isinstance(cancelled, Conflict) else "cancelled")
        assert_sound(here, batch.id, 3 + number)
        seen.add(status)
    assert seen


def test_deletion_during_run_leaves_nothing(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.02}, upstream={"max_in_flight": 2}, lease_s=2.0)
    batches = here.client.batches
    for _ in range(ROUNDS):
        batch = made(here, tmp_path)
        ran, deleted = race(lambda batch_id=batch.id: batches.run(batch_id), lambda i=batch.id: batches.delete(i))

        assert deleted is None
        assert isinstance(ran, BatchResponse | NotFound | Conflict)
        with pytest.raises(NotFound):
            batches.retrieve(batch.id)
        assert here.client.services.store.list_objects(f"batches/{batch.id}/") == []
    assert {file.purpose for file in here.client.files.list()} == {"batch"}


def test_retry_during_deletion_leaves_only_objects_due_for_deletion(make_client, tmp_path):
    here = make_client()
    batches = here.client.batches
    for _ in range(ROUNDS):
        batch = failed(here, tmp_path)
        retried, deleted = race(
            lambda batch_id=batch.id: batches.retry(batch_id, via=None), lambda i=batch.id: batches.delete(i)
        )

        assert deleted is None
        assert isinstance(retried, BatchResponse | BatchlineError)
        with pytest.raises(NotFound):
            batches.retrieve(batch.id)
        list_of = here.client.services.records.due_deletions(now=2**40)
        left = [info.key for info in here.client.services.store.list_objects(f"batches/{batch.id}/")]
        assert [key for key in left if not key.startswith(tuple(some.prefix for some in list_of) or ("-",))] == []


def test_input_deletion_during_batch_creation_rejects_one_of_them(make_client, tmp_path):
    here = make_client()
    for _ in range(10):
        file = here.client.files.create(file=write_requests(tmp_path / "r.jsonl", 3))
        made_, deleted = race(
            lambda file_id=file.id: here.client.batches.create(input_file_id=file_id, via=None),
            lambda file_id=file.id: here.client.files.delete(file_id),
        )
        if isinstance(made_, NotFound):
            assert deleted is None
        else:
            assert isinstance(deleted, Conflict)
            assert here.client.batches.run(made_.id).status == "completed"


class DelayedHeartbeats(Records):
    """Records whose heartbeat is held up on its way until the batch is over."""

    def __init__(self, records: Records) -> None:
        super().__init__(records._engine)
        self.is_held_up = False

    def heartbeat(
        self, lease: Lease, *, completed: int | None = None, failed: int | None = None, now: float | None = None
    ) -> BatchStatus:
        if not completed:
            return super().heartbeat(lease, now=now, completed=completed, failed=failed)
        self.is_held_up = True
        while self.get_batch(lease.batch_id).status not in TERMINAL_STATUSES:
            threading.Event().wait(0.01)
        return super().heartbeat(lease, now=now, completed=completed, failed=failed)


def test_late_heartbeat_does_not_change_final_counts(make_client, tmp_path):
    here = make_client(simulator={"latency_s": 0.1}, upstream={"max_in_flight": 2})
    services = here.client.services
    records = DelayedHeartbeats(services.records)
    batch = made(here, tmp_path)

    with Batchline(services=Services(settings=services.settings, store=services.store, records=records)) as client:
        ended = client.batches.run(batch.id)

    assert records.is_held_up
    assert ended.request_counts.completed == 30
    assert here.client.batches.retrieve(batch.id).request_counts == ended.request_counts


def test_retry_immediately_after_end_is_run(make_client, tmp_path, monkeypatch):
    here = make_client()
    store, batches = here.client.services.store, here.client.batches
    delete, is_deleting = store.delete, threading.Event()

    def slowly(keys) -> None:
        is_deleting.set()
        threading.Event().wait(0.5)
        delete(keys)

    batch = made(here, tmp_path, 3, prompt="simulate:status=400 {}".format)
    monkeypatch.setattr(store, "delete", slowly)
    batches.resume(batch.id)
    batches.wait(batch.id, timeout_s=30, poll_interval_s=0.005)
    assert is_deleting.wait(10)
    monkeypatch.setattr(store, "delete", delete)

    batches.retry(batch.id)

    assert batches.wait(batch.id, timeout_s=10).status == "failed"
    assert here.simulator.counters()["received"] == 6
