"""Housekeeping of batches whose flow runs ended in every way, by what a real Prefect server knows of them."""

from collections.abc import Callable
from uuid import UUID

import pytest
from helpers.batch_assertions import new_batch
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Cancelling, Completed, Crashed, Failed, Pending, Running, Scheduled, State, Suspended

from batchline import Batchline
from batchline.client.housekeeping import MaintenanceItem, run_housekeeping
from batchline.engine.services import Services
from batchline.flows.process_batch import process_batch
from batchline.models.status import BatchStatus
from batchline.orchestration import run_needed
from batchline.storage.records.store import BatchRecord

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("prefect_server")]

NAME = "of-housekeeping"


@pytest.fixture(autouse=True)
def followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the automation that starts the next run after a crash: there is none."""
    monkeypatch.setattr(run_needed, "FOLLOW_UP_TIMEOUT_S", 0.0)


@pytest.fixture
def batch_after(start_simulator, make_services, chat_file) -> Callable[..., BatchRecord]:
    """Make a batch whose deployment run has gone through those states, with nobody at work on it."""
    services = make_services(start_simulator().base_url)

    def make(*states: State) -> BatchRecord:
        batch = new_batch(services, chat_file(20), source="deployment")
        with get_client(sync_client=True) as client:
            run = started(client, batch.id, states)
        services.records.record_flow_run(batch.id, str(run))
        return services.records.get_batch(batch.id)

    make.services = services  # type: ignore[attr-defined]
    return make


def started(client: SyncPrefectClient, batch_id: str, states: tuple[State, ...]) -> UUID:
    deployment = client.create_deployment(client.create_flow(process_batch), NAME)
    run = client.create_flow_run_from_deployment(deployment, parameters={"batch_id": batch_id})
    for state in states:
        client.set_flow_run_state(run.id, state)
    return run.id


def chores(services: Services, *, apply: bool = False) -> list[MaintenanceItem]:
    return list(run_housekeeping(Batchline(services=services), apply=apply))


def test_housekeeping_chooses_action_by_flow_run_states(batch_after):
    begun = (Pending(), Running())
    suspended = (*begun, Suspended(timeout_seconds=300))
    found = {
        "crashed, and the event was lost": ((*begun, Crashed()), "resume"),
        "suspended, and its process died before it paused the batch": (suspended, "pause"),
        "suspended, and failed when the timeout of the pages lapsed": ((*suspended, Failed()), "pause"),
        "suspended, and crashed": ((*suspended, Crashed()), "pause"),
        "suspended and cancelled, which no process hears of": ((*suspended, Cancelling()), "cancel"),
        "resumed, and waiting for a worker": ((*suspended, Scheduled()), None),
        "resumed, and crashed": ((*suspended, Scheduled(), *begun, Crashed()), "resume"),
        "waiting": ((), None),
        "begun a moment ago": (begun, None),
        "failed": ((*begun, Failed()), None),
        "cancelled before it began": ((Cancelling(),), None),
    }
    for case, (states, kind) in found.items():
        batch = batch_after(*(state.model_copy() for state in states))
        kinds = [chore.kind for chore in chores(batch_after.services) if chore.subject == batch.id]
        assert kinds == ([kind] if kind else []), case


def test_batch_of_unnoticed_crash_is_completed(batch_after):
    batch = batch_after(Pending(), Running(), Crashed())

    [chore] = chores(batch_after.services, apply=True)

    ended = batch_after.services.records.get_batch(batch.id)
    assert (chore.done, ended.status, ended.completed) == (True, BatchStatus.COMPLETED, 20)


def test_batch_of_flow_run_that_died_before_lease_is_completed(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    with get_client(sync_client=True) as client:
        run = started(client, "", (Pending(), Running()))
        batch = new_batch(services, chat_file(20), source="deployment", flow_run_id=str(run))
        assert chores(services) == []  # it may be about to take it

        client.set_flow_run_state(run, Crashed())

    [chore] = chores(services, apply=True)
    assert (chore.done, services.records.get_batch(batch.id).status) == (True, BatchStatus.COMPLETED)


def test_batch_of_cancelled_suspended_flow_run_is_cancelled(batch_after):
    batch = batch_after(Pending(), Running(), Suspended(timeout_seconds=300), Cancelling())

    [chore] = chores(batch_after.services, apply=True)

    assert (chore.done, batch_after.services.records.get_batch(batch.id).status) == (True, BatchStatus.CANCELLED)


def test_crashed_batch_with_waiting_flow_run_is_not_resumed(batch_after):
    batch = batch_after(Pending(), Running(), Crashed())
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"{process_batch.name}/{NAME}").id
        crashed = f"prefect.flow-run.{batch.last_flow_run_id}"
        follower = client.create_flow_run_from_deployment(deployment, parameters={"crashed_run": crashed})

        assert chores(batch_after.services) == []

        client.set_flow_run_state(follower.id, Completed(), force=True)
    assert [chore.kind for chore in chores(batch_after.services)] == ["resume"]


def test_a_crash_is_followed_again_if_the_worker_died_before_it_began_the_next_run(batch_after, monkeypatch):
    batch = batch_after(Pending(), Running(), Crashed())
    with get_client(sync_client=True) as client:
        crashed = batch_after.services.records.get_batch(batch.id).last_flow_run_id
        deployment = client.create_deployment(client.create_flow(process_batch), NAME)
        follower = client.create_flow_run_from_deployment(deployment, parameters={"crashed_run": crashed})
        client.set_flow_run_state(follower.id, Pending())
    assert chores(batch_after.services) == []  # it may be about to begin

    monkeypatch.setattr(run_needed, "START_TIMEOUT_S", -1.0)

    [chore] = chores(batch_after.services, apply=True)
    ended = batch_after.services.records.get_batch(batch.id)
    assert (chore.done, ended.status, ended.completed) == (True, BatchStatus.COMPLETED, 20)
