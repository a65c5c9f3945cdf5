"""Artifacts and events of a flow run, and batches that are started as runs."""

import json
from typing import Any
from uuid import UUID

import pytest
from helpers.batch_assertions import new_batch
from helpers.polling import until
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact
from prefect.states import Cancelled

from batchline import Batchline
from batchline.engine.ingest import store_input_file
from batchline.engine.lease import acquire_lease
from batchline.engine.services import using_services
from batchline.flows.process_batch import process_batch
from batchline.models.batches import BatchError
from batchline.models.errors import Interrupted, InvalidInput, NotFound
from batchline.orchestration import artifacts, events, run_monitor
from batchline.orchestration.artifacts import MAX_LISTED_ERRORS
from batchline.orchestration.blocks import StorageBlock, UpstreamBlock, settings_from_blocks
from batchline.orchestration.crashed_runs import batch_of_crashed_run
from batchline.orchestration.setup import chain_batches, set_up_server

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("prefect_server")]


def artifacts_of(run_id: UUID) -> dict[str, Artifact]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {artifact.type: artifact for artifact in found}


def fails_some(number: int) -> str:
    return "simulate:status=400" if number % 10 == 3 else f"question {number}"


def test_flow_run_artifacts_show_outcome_metrics_and_progress(
    start_simulator, make_services, chat_file, monkeypatch
):
    for pause in ("STATE_POLL_INTERVAL_S", "PROGRESS_INTERVAL_S", "TICK_S"):
        monkeypatch.setattr(run_monitor, pause, 0.1)
    services = make_services(start_simulator(latency_s=0.2).base_url, upstream={"max_in_flight": 8})
    path = chat_file(60, prompt=fails_some).rename(chat_file(1).parent / "a|b <x> _c_.jsonl")
    stored = store_input_file(services, path)

    with using_services(services):
        state = process_batch(input_file_id=stored.id, metadata={"team": "search"}, return_state=True)

    assert state.message == "completed: 54 ok, 6 failed: invalid_request 6 (most often: status 400 as ordered)"
    shown = artifacts_of(state.state_details.flow_run_id)
    page = shown["markdown"].data
    assert "54 ok, 6 failed" in page
    assert r"# a\|b \<x\> \_c\_.jsonl" in page
    assert "| team | search |" in page
    assert "| invalid_request | 6 | 400: 6 | status 400 as ordered |" in page
    figures = {row["figure"]: row["value"] for row in json.loads(shown["table"].data)}
    assert (figures["completed"], figures["failed"], figures["attempts"]) == (54, 6, 60)
    assert (shown["progress"].data, shown["progress"].description) == (100, "completed: 54 ok, 6 failed")


def test_flow_run_with_invalid_input_lists_errors_and_fails_validate_task(
    start_simulator, make_services, tmp_path
):
    services = make_services(start_simulator().base_url)
    path = tmp_path / "bad.jsonl"
    path.write_text("nonsense\n{}\n")
    stored = store_input_file(services, path)

    with using_services(services):
        state = process_batch(input_file_id=stored.id, return_state=True)

    page = artifacts_of(state.state_details.flow_run_id)["markdown"].data
    batch = services.records.find_last_batch_of_flow_run(str(state.state_details.flow_run_id))
    for error in batch.errors:
        assert f"| {error.line} | {error.code.replace('_', chr(92) + '_')} |" in page
    assert {error.line for error in batch.errors} == {1, 2}
    with get_client(sync_client=True) as client:
        (task,) = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        )
    assert (task.name, task.state.type.value, task.state.message) == ("validate", "FAILED", state.message)


def test_error_table_is_truncated_with_remaining_count():
    errors = [
        BatchError(code="invalid_json_line", line=n, message="not JSON") for n in range(1, MAX_LISTED_ERRORS + 6)
    ]

    rows = artifacts.errors_table(errors).splitlines()

    assert len(rows) == 2 + MAX_LISTED_ERRORS + 1
    assert rows[-1].endswith("| and 5 more |")


def three_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return found if len(found) >= 3 else []


def test_batch_status_changes_emit_events_with_metrics(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    stored = store_input_file(services, chat_file(20, prompt=fails_some))

    with using_services(services):
        batch = process_batch(input_file_id=stored.id)

    resource = {"filter": {"resource": {"id": [f"batchline.batch.{batch.id}"]}}}
    with get_client(sync_client=True) as client:
        told = until(lambda: three_of(client.request("POST", "/events/filter", json=resource).json()["events"]))
    told.sort(key=lambda event: event["occurred"])
    assert [event["event"] for event in told] == ["batch.created", "batch.in_progress", "batch.completed"]
    last = told[-1]["payload"]
    assert last["message"] == "completed: 18 ok, 2 failed: invalid_request 2 (most often: status 400 as ordered)"
    assert (last["completed"], last["failed"], last["failures"]) == (18, 2, {"invalid_request": 2})
    assert last["total_tokens"] == batch.analytics.total_tokens


def test_batch_deadline_risk_is_reported_once(start_simulator, make_services, chat_file, monkeypatch):
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(events, "emit_event", lambda *stopped, **event: told.append(event))
    for pause in ("STATE_POLL_INTERVAL_S", "PROGRESS_INTERVAL_S", "TICK_S"):
        monkeypatch.setattr(run_monitor, pause, 0.1)
    monkeypatch.setattr(run_monitor, "RISK_CHECK_DELAY_S", 0.5)
    monkeypatch.setattr(run_monitor.ProgressMeter, "eta_s", lambda self: 3_600.0)
    services = make_services(start_simulator(latency_s=0.2).base_url, upstream={"max_in_flight": 8})
    stored = store_input_file(services, chat_file(60))

    with using_services(services):
        state = process_batch(input_file_id=stored.id, completion_window="1m", return_state=True)

    (late,) = (event["payload"] for event in told if event.get("event") == "batch.deadline_at_risk")
    assert 0 < late["completed"] < late["total"] == 60
    assert 3_500 < late["late_by_s"] < 3_600
    assert late["run_url"].endswith(f"/runs/flow-run/{state.state_details.flow_run_id}")


@pytest.fixture
def deployed() -> None:
    process_batch.to_deployment("process-batch").apply()


@pytest.mark.usefixtures("deployed")
def test_deployment_batch_exists_before_worker_starts(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    with Batchline(services=services) as client:
        file = client.files.create(file=chat_file(5))
        batch = client.batches.create(input_file_id=file.id, via="deployment")
        record = client.batches.record(batch.id)
        again = client.batches.resume(batch.id, via="deployment")

    assert (batch.status, batch.dwext.source, again.id) == ("validating", "deployment", batch.id)
    with get_client(sync_client=True) as prefect:
        run = prefect.read_flow_run(UUID(record.last_flow_run_id))
    assert run.parameters["batch_id"] == batch.id
    assert run.name == f"{file.filename} {batch.id}"
    assert client.batches.record(batch.id).last_flow_run_id == record.last_flow_run_id
    assert batch_of_crashed_run(services, f"prefect.flow-run.{run.id}").id == batch.id


@pytest.mark.usefixtures("deployed")
def test_restarted_deployment_batch_emits_one_created_event(
    start_simulator, make_services, chat_file, monkeypatch
):
    told: list[str] = []
    monkeypatch.setattr(events, "emit_event", lambda event, **more: told.append(event))
    with (
        Batchline(services=make_services(start_simulator().base_url)) as client,
        get_client(sync_client=True) as prefect,
    ):
        file = client.files.create(file=chat_file(5))
        batch = client.batches.create(input_file_id=file.id, via="deployment")
        first = client.batches.record(batch.id).last_flow_run_id
        prefect.set_flow_run_state(UUID(first), Cancelled())
        client.batches.resume(batch.id, via="deployment")

    assert client.batches.record(batch.id).last_flow_run_id != first
    assert told == ["batch.created"]


def test_rejected_flow_run_does_not_replace_active_flow_run(start_simulator, make_services, chat_file):
    services = make_services(start_simulator(latency_s=0.3).base_url, upstream={"max_in_flight": 1}, lease_s=1.0)
    batch = new_batch(services, chat_file(10))
    with using_services(services), acquire_lease(services, batch.id) as hold:
        hold.records.record_flow_run(batch.id, "the one that has it")
        refused = process_batch(batch_id=batch.id, return_state=True)

    assert "is being run by another process" in refused.message
    assert services.records.get_batch(batch.id).last_flow_run_id == "the one that has it"
    crashed = batch_of_crashed_run(services, f"prefect.flow-run.{refused.state_details.flow_run_id}")
    assert crashed.id == batch.id


def test_batch_start_without_deployment_keeps_batch_and_suggests_command(
    start_simulator, make_services, chat_file
):
    services = make_services(start_simulator().base_url, deployment="process-batch/nobodys")
    with Batchline(services=services) as client:
        file = client.files.create(file=chat_file(5))
        with pytest.raises(Interrupted, match="prefect deploy --all") as told:
            client.batches.create(input_file_id=file.id, via="deployment")
        (batch,) = client.batches.list()

    assert batch.id in str(told.value)
    assert batch.status == "validating"


def test_crashed_flow_run_without_batch_raises_not_found(start_simulator, make_services):
    with pytest.raises(NotFound, match="before it had a batch"):
        batch_of_crashed_run(make_services(start_simulator().base_url), "nobody")


def test_prefect_setup_is_idempotent(capsys):
    first, second = (
        [each.outcome for each in set_up_server(notify=["http://127.0.0.1:9/hook"])] for _ in range(2)
    )

    assert first.count("made") == 5
    assert second.count("made") == 0
    with pytest.raises(InvalidInput, match="crash-after"):
        list(set_up_server(crash_after_s=10))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("slack-webhook/nobody", "there is no block 'slack-webhook/nobody'"),
        ("storage", "there is no block 'storage'"),
        ("batchline-upstream/mute", "cannot notify"),
    ],
    ids=["unknown", "no name", "of another kind"],
)
def test_prefect_setup_with_invalid_notification_target_is_rejected(target, why):
    UpstreamBlock(base_url="http://127.0.0.1:9").save("mute", overwrite=True)

    with pytest.raises(InvalidInput, match=why):
        list(set_up_server(notify=[target]))


@pytest.mark.usefixtures("deployed")
def test_chain_is_idempotent_and_requires_deployment():
    options = {"endpoint": "/v1/embeddings", "window": "6h"}
    made = [
        chain_batches("a.jsonl", "/jobs/b.jsonl", deployment="process-batch/process-batch", **options)
        for _ in range(2)
    ]

    assert [each.outcome for each in made] == ["made", "renewed"]
    with pytest.raises(InvalidInput, match="there is no deployment process-batch/nobodys"):
        chain_batches("a.jsonl", "/jobs/b.jsonl", deployment="process-batch/nobodys", **options)


def test_flow_run_uses_blocks_by_name(start_simulator, make_services, chat_file, tmp_path, monkeypatch):
    monkeypatch.setattr("batchline.engine.services._open_services", [])
    monkeypatch.setenv("BATCHLINE_SOURCE_ROOTS", json.dumps([str(tmp_path)]))
    simulator = start_simulator(api_key="sk-block-1234")
    UpstreamBlock(base_url=simulator.base_url, api_key="sk-block-1234").save("gpus", overwrite=True)
    StorageBlock(storage_url=str(tmp_path / "store"), database_url=f"sqlite:///{tmp_path / 'records.db'}").save(
        "team", overwrite=True
    )

    batch = process_batch(input_uri=str(chat_file(7)), upstreams=["gpus"], storage="team")

    assert batch.request_counts.completed == simulator.counters()["received"] == 7
    assert (tmp_path / "store" / "batches" / batch.id / "output.jsonl").is_file()


def test_missing_or_invalid_block_is_rejected_by_name():
    with pytest.raises(InvalidInput, match="batchline-upstream/nobody"):
        settings_from_blocks(upstreams=["nobody"], storage=None)
    UpstreamBlock(base_url="nonsense", api_key="hunter2").save("wrong", overwrite=True)
    with pytest.raises(InvalidInput, match="batchline-upstream/wrong") as told:
        settings_from_blocks(upstreams=["wrong"], storage=None)
    assert "hunter2" not in str(told.value)
