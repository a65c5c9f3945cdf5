"""An input that changes under a batch: the run stops, says so, and sends nothing of what was not validated."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.batch_assertions import new_batch
from helpers.recording_upstream import RecordingUpstream, recording_upstream

from batchline.engine.lease import acquire_lease
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.errors import InputChanged, NotFound
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.steps.plans import read_first_plan
from batchline.steps.validate import validate
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord


@pytest.fixture
def recorder() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        yield server


def created(services: Services, path: Path) -> tuple[BatchRecord, Path]:
    """A new batch of the file, and where its input is stored."""
    batch = new_batch(services, path)
    return batch, Path(services.store.uri(layout.input_key(batch.input_file_id)))


def validated(services: Services, path: Path) -> tuple[BatchRecord, Path]:
    """A batch that has been validated and whose runner is gone."""
    batch, stored = created(services, path)
    with acquire_lease(services, batch.id) as hold:
        assert validate(hold) is not None
    return batch, stored


def prompts(recorder: RecordingUpstream) -> list[str]:
    return [json.loads(body)["messages"][0]["content"] for _, body in recorder.sent]


def change_byte(path: Path, of: bytes) -> None:
    """Change the last byte of where that text stands, and leave size and time as they were."""
    times = path.stat()
    text = path.read_bytes()
    at = text.index(of) + len(of) - 1
    path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "vanished": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "without its last line": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "without its first byte": lambda path: path.write_bytes(path.read_bytes()[1:]),
    "with a line more": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "with one other byte": lambda path: change_byte(path, b"Question 25?"),
    "with a newline for a space": lambda path: path.write_bytes(path.read_bytes().replace(b" ", b"\n", 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_input_changed_after_validation_stops_the_batch(change, recorder, make_services, chat_file):
    services = make_services(recorder.base_url, chunk_requests=10)
    batch, stored = validated(services, chat_file(40))
    change(stored)

    with pytest.raises(InputChanged, match=r"since it was validated.*(upload it again|start a new batch)"):
        run_local(services, batch.id)


def test_changed_input_range_sends_no_request(recorder, make_services, chat_file):
    services = make_services(recorder.base_url, chunk_requests=2_000)
    batch, stored = validated(services, chat_file(1_500))
    change_byte(stored, b"Question 1203?")

    with pytest.raises(InputChanged):
        run_local(services, batch.id)

    stretches = [each for chunk in read_first_plan(services.store, batch.id).chunks for each in chunk.ranges]
    first = max(each.first_line for each in stretches if each.first_line <= 1_204)
    assert {f"Question {number}?" for number in range(first - 1, 1_500)}.isdisjoint(prompts(recorder))


def test_changed_input_sends_only_validated_requests(recorder, make_services, chat_file):
    services = make_services(recorder.base_url, chunk_requests=10)
    batch, stored = validated(services, chat_file(40))
    change_byte(stored, b"Question 25?")

    with pytest.raises(InputChanged):
        run_local(services, batch.id)

    assert set(prompts(recorder)) <= {f"Question {number}?" for number in (*range(20), *range(30, 40))}


def test_batch_with_changed_input_resumes_after_the_file_is_restored(recorder, make_services, chat_file):
    services = make_services(recorder.base_url, chunk_requests=10)
    path = chat_file(40)
    batch, stored = validated(services, path)
    change_byte(stored, b"Question 25?")
    with pytest.raises(InputChanged):
        run_local(services, batch.id)
    assert services.records.get_batch(batch.id).status is BatchStatus.IN_PROGRESS

    stored.write_bytes(path.read_bytes())
    ended = run_local(services, batch.id)

    output = services.store.read(layout.output_key(batch.id)).splitlines()
    assert (ended.status, ended.completed) == (BatchStatus.COMPLETED, 40)
    assert [json.loads(line)["custom_id"] for line in output] == [f"request-{number}" for number in range(40)]


@pytest.mark.parametrize("name", ["vanished", "empty", "with one other byte"])
def test_input_changed_during_run_stops_the_batch_without_losing_results(name, recorder, make_services, chat_file):
    services = make_services(recorder.base_url, chunk_requests=10, upstream={"max_in_flight": 4})
    path = chat_file(600)
    batch, stored = created(services, path)
    once = threading.Lock()

    def change_at_first() -> None:
        if once.acquire(blocking=False):
            CHANGES[name](stored) if name != "with one other byte" else change_byte(stored, b"Question 595?")

    recorder.before_answer = change_at_first
    with pytest.raises(InputChanged):
        run_local(services, batch.id)
    assert len(recorder.sent) < 600

    recorder.before_answer = lambda: None
    stored.write_bytes(path.read_bytes())
    ended = run_local(services, batch.id)

    assert (ended.status, ended.completed) == (BatchStatus.COMPLETED, 600)
    assert sorted(prompts(recorder)) == sorted(f"Question {number}?" for number in range(600))


def test_input_missing_before_validation_leaves_the_batch_open(recorder, make_services, chat_file):
    services = make_services(recorder.base_url)
    batch, stored = created(services, chat_file(10))
    stored.unlink()

    with pytest.raises(NotFound, match=r"content\.jsonl"):
        run_local(services, batch.id)

    assert services.records.get_batch(batch.id).status not in TERMINAL_STATUSES
    assert recorder.sent == []


def test_input_deleted_after_last_result_does_not_fail_the_batch(recorder, make_services, chat_file):
    services = make_services(recorder.base_url, chunk_requests=10)
    batch, stored = created(services, chat_file(20))
    answered = threading.Barrier(20, action=stored.unlink)
    recorder.before_answer = lambda: answered.wait(20) and None

    ended = run_local(services, batch.id)

    assert (ended.status, ended.completed) == (BatchStatus.COMPLETED, 20)
