"""PostgreSQL commits and the answer is lost: what was done is done once, and nothing is undone for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commit_proxy import CommitProxy, commit_proxy
from helpers.request_files import read_lines, request_numbers, write_requests

from batchline import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.engine import retry
from batchline.engine.services import Services
from batchline.models.errors import Conflict, StorageFault
from batchline.models.sync import SyncOptions
from batchline.simulate import Simulator
from batchline.storage.records import transactions

pytestmark = pytest.mark.system


@pytest.fixture
def proxy(postgres_database: dict[str, object]) -> Iterator[CommitProxy]:
    with commit_proxy(str(postgres_database["database_url"])) as server:
        yield server


@pytest.fixture
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator()


@pytest.fixture
def client(
    proxy: CommitProxy, simulator: Simulator, make_services: Callable[..., Services], tmp_path: Path
) -> Iterator[Batchline]:
    services = make_services(
        simulator.base_url,
        upstream={"max_attempts": 1},
        database_url=proxy.url,
        source_roots=(str(tmp_path),),
        source_still_s=0,
    )
    with Batchline(services=services) as made:
        yield made


def half_fails(number: int) -> str:
    return f"{number} simulate:status=400" if number % 2 else f"Question {number}?"


def test_batch_and_retry_succeed_when_every_commit_reply_is_lost(client, proxy, simulator, tmp_path):
    proxy.drops_reply = lambda number: True

    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 20, prompt=half_fails))
    batch = client.batches.create(input_file_id=file.id, via=None)
    client.batches.run(batch.id)
    client.batches.retry(batch.id, via=None)
    ended = client.batches.run(batch.id)

    assert (ended.status, ended.request_counts.completed, ended.request_counts.failed) == ("completed", 10, 10)
    assert request_numbers(read_lines(client, ended.output_file_id)) == list(range(0, 20, 2))
    assert request_numbers(read_lines(client, ended.error_file_id)) == list(range(1, 20, 2))
    assert simulator.counters()["received"] == 30
    assert len(list(client.batches.list())) == 1
    assert proxy.lost == proxy.commits > 10

    client.batches.delete(batch.id)
    client.files.delete(file.id)
    assert (list(client.batches.list()), list(client.files.list())) == ([], [])
    assert client.services.store.list_objects("") == []


def test_cancel_and_key_creation_apply_once_when_commit_reply_is_lost(client, proxy, tmp_path):
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 3))
    batch = client.batches.create(input_file_id=file.id, via=None)
    proxy.drops_reply = lambda number: True

    assert client.batches.cancel(batch.id).status == "cancelled"
    keys = ApiKeys(client)
    made = keys.create("somebody")
    assert [key.id for key in keys.list()] == [made.id]


@pytest.mark.parametrize("after", ["keep", "delete"])
def test_sync_picks_up_file_once_when_commit_reply_is_lost(after, client, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr("batchline.sync.sync_pass.DELETE_AFTER_S", 0)
    (tmp_path / "inbox").mkdir()
    path = write_requests(tmp_path / "inbox" / "r.jsonl", 3)
    content = path.read_bytes()
    proxy.drops_reply = lambda number: True

    summary = client.sync(str(tmp_path / "inbox"), SyncOptions(after=after), start_batch=lambda batch_id: None)

    assert (summary.taken, summary.started, summary.failed) == (1, 1, 0)
    assert path.exists() == (after == "keep")
    [batch] = client.batches.list()
    assert b"".join(client.files.content(batch.input_file_id)) == content


def test_sync_with_unknown_commit_outcome_keeps_stored_file(client, proxy, tmp_path, monkeypatch):
    """The database stays away: neither the copy nor the file is deleted, and the next round finds the batch."""
    (tmp_path / "inbox").mkdir()
    path = write_requests(tmp_path / "inbox" / "r.jsonl", 3)
    content = path.read_bytes()
    take = client.services.records.record_synced_file

    def lose_this(*arguments: object, **options: object) -> object:
        proxy.drops_reply = lambda number: True
        with monkeypatch.context() as away:
            away.setattr(transactions, "_was_committed", fault)
            return take(*arguments, **options)

    def fault(*_: object) -> bool:
        raise StorageFault("the database is away")

    monkeypatch.setattr(client.services.records, "record_synced_file", lose_this)
    options, inbox = SyncOptions(after="delete"), str(tmp_path / "inbox")
    with pytest.raises(StorageFault):
        client.sync(inbox, options, start_batch=lambda batch_id: None)
    monkeypatch.setattr(client.services.records, "record_synced_file", take)
    proxy.drops_reply = lambda number: False

    summary = client.sync(inbox, options, start_batch=lambda batch_id: None)

    assert (summary.unchanged, summary.started) == (1, 1)
    [batch] = client.batches.list()
    assert b"".join(client.files.content(batch.input_file_id)) == content
    assert path.exists()


def test_transaction_broken_before_commit_is_repeated(client, proxy, tmp_path):
    """A connection that breaks before the COMMIT: the transaction is rolled back, and repeated."""
    proxy.drops_commit = lambda number: number == 0

    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 3))

    assert client.files.retrieve(file.id).id == file.id
    assert len(list(client.files.list())) == 1


def test_retry_after_concurrent_retry_conflicts_when_commit_reply_is_lost(client, proxy, tmp_path, monkeypatch):
    proxy.drops_reply = lambda number: True
    path = write_requests(tmp_path / "r.jsonl", 4, prompt=half_fails)
    batch = client.batches.create(input_file_id=client.files.create(file=path).id, via=None)
    client.batches.run(batch.id)
    other = Batchline(services=client.services)
    whole_plan = retry.read_first_plan

    def another_comes_first(*arguments: object) -> object:
        monkeypatch.setattr(retry, "read_first_plan", whole_plan)
        other.batches.retry(batch.id, via=None)
        return whole_plan(*arguments)

    monkeypatch.setattr(retry, "read_first_plan", another_comes_first)
    with pytest.raises(Conflict):
        client.batches.retry(batch.id, via=None)

    assert client.batches.run(batch.id).request_counts.failed == 2
