"""The end of a batch is announced once in Prefect, also if the run that ended it died before it could."""

import time
from importlib import import_module
from typing import Any

import pytest
from helpers.batch_assertions import new_batch
from helpers.polling import until
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.states import Crashed, Running

from batchline import Batchline
from batchline.client.housekeeping import run_housekeeping
from batchline.engine.pipeline import run_local
from batchline.engine.retry import retry_batch
from batchline.engine.services import Services, using_services
from batchline.flows.process_batch import process_batch
from batchline.orchestration import end_announcement
from batchline.storage.records.store import BatchRecord

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(autouse=True)
def announced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make housekeeping announce ends at once, without waiting for the runs to do so."""
    # By name: the package has a function of the module's name.
    monkeypatch.setattr(import_module("batchline.client.housekeeping"), "ANNOUNCE_TIMEOUT_S", -1.0)


def ended_by_a_run_that_died(services: Services, path) -> BatchRecord:
    """The batch is over, and its run crashed before it said so, as it does if its concurrency lease is gone."""
    batch = new_batch(services, path, source="deployment")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(process_batch, state=Running())
        services.records.record_flow_run(batch.id, str(run.id))
        run_local(services, batch.id)
        client.set_flow_run_state(run.id, Crashed(), force=True)
    return services.records.get_batch(batch.id)


def events_of(batch: BatchRecord, name: str = "batch.completed") -> list[dict[str, Any]]:
    """The events of that name that the server has of the batch."""
    resource = {"id": [f"batchline.batch.{batch.id}"]}
    with get_client(sync_client=True) as client:
        asked = {"filter": {"event": {"name": [name]}, "resource": resource}}
        found: list[dict[str, Any]] = client.request("POST", "/events/filter", json=asked).json()["events"]
    return found


def keep_house(services: Services, batch: BatchRecord) -> list[str]:
    done = run_housekeeping(Batchline(services=services), apply=True)
    return [chore.kind for chore in done if chore.subject == batch.id and chore.done]


def test_housekeeping_announces_end_missed_by_dead_flow_run(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    batch = ended_by_a_run_that_died(services, chat_file(20))

    assert keep_house(services, batch) == ["announce"]

    [event] = until(lambda: events_of(batch))
    assert event["payload"]["completed"] == 20
    related = {each["prefect.resource.role"]: each["prefect.resource.id"] for each in event["related"]}
    assert related["flow-run"] == f"prefect.flow-run.{batch.last_flow_run_id}"
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(batch.last_flow_run_id)
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        shown = {artifact.type for artifact in client.read_artifacts(artifact_filter=wanted)}
    assert (run.state.name, run.state.message) == ("Completed", "completed: 20 ok, 0 failed")
    assert shown == {"markdown", "table"}
    assert keep_house(services, batch) == []


def test_flow_run_after_crash_announces_end_once(start_simulator, make_services, chat_file):
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    batch = ended_by_a_run_that_died(services, chat_file(20))

    with using_services(services):
        followed = process_batch(crashed_run=f"prefect.flow-run.{batch.last_flow_run_id}", return_state=True)
        process_batch(batch_id=batch.id)

    assert followed.is_completed()
    until(lambda: events_of(batch))
    time.sleep(2)
    assert len(events_of(batch)) == 1
    assert keep_house(services, batch) == []
    assert simulator.counters()["received"] == 20


def test_end_announcement_is_repeated_after_failure(start_simulator, make_services, chat_file, monkeypatch):
    services = make_services(start_simulator().base_url)
    batch = new_batch(services, chat_file(10), source="deployment")
    send = end_announcement._send_end_event

    def fail(*_: object) -> None:
        raise end_announcement.Interrupted("Prefect does not answer")

    with using_services(services):
        monkeypatch.setattr(end_announcement, "_send_end_event", fail)
        process_batch(batch_id=batch.id)
        monkeypatch.setattr(end_announcement, "_send_end_event", send)

    assert events_of(batch) == []
    assert keep_house(services, batch) == ["announce"]
    assert len(until(lambda: events_of(batch))) == 1


def test_end_of_retried_batch_is_announced_again(start_simulator, make_services, chat_file):
    services = make_services(start_simulator(server_error=0.3).base_url, upstream={"max_attempts": 1})
    batch = new_batch(services, chat_file(60), source="deployment")
    with using_services(services):
        process_batch(batch_id=batch.id)
        retry_batch(services, batch.id)
        process_batch(batch_id=batch.id)

    until(lambda: len(events_of(batch)) == 2)
    assert keep_house(services, batch) == []
