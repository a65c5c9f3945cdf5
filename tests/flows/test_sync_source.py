"""The flow that watches a folder, on a real Prefect server."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.polling import until
from helpers.record_edits import change_synced_files
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.utilities.callables import parameter_schema

from batchline import Batchline
from batchline.engine.services import Services, open_services
from batchline.flows.process_batch import process_batch
from batchline.flows.sync_source import sync_source
from batchline.models.status import BatchStatus


@pytest.fixture
def inbox(tmp_path: Path, start_simulator: Callable, chat_file: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files, and an environment that allows it and has an upstream."""
    monkeypatch.setattr("batchline.engine.services._open_services", [])
    monkeypatch.setenv("BATCHLINE_SOURCE_ROOTS", json.dumps([str(tmp_path)]))
    monkeypatch.setenv("BATCHLINE_SOURCE_STILL_S", "0")
    monkeypatch.setenv("OPENAI_BASE_URL", start_simulator().base_url)
    folder = tmp_path / "inbox"
    folder.mkdir()
    for count in (2, 3):
        path = chat_file(count)
        path.rename(folder / path.name)
    return folder


def statuses(services: Services, summary) -> list[BatchStatus]:
    taken = [event.batch_id for event in summary.events if event.kind == "taken"]
    return [services.records.get_batch(batch_id).status for batch_id in taken]


# The form


def test_sync_flow_parameters_are_described_and_choices_listed():
    properties = parameter_schema(sync_source).model_dump()["properties"]

    assert [name for name, about in properties.items() if not about.get("description")] == []
    assert properties["after"]["enum"] == ["keep", "move", "delete"]
    assert properties["via"]["enum"] == ["deployment", "process"]
    assert {about.get("type") for about in properties.values()} == {"string", "boolean", "object"}


# Rounds


@pytest.mark.system
@pytest.mark.usefixtures("prefect_server")
def test_sync_flow_runs_batches_and_writes_results_back(inbox, caplog):
    with caplog.at_level(logging.INFO):
        state = sync_source(
            str(inbox),
            via="process",
            write_back=True,
            metadata={"team": "a"},
            options={"on_limit": "stop"},
            return_state=True,
        )
    summary = state.result()
    (options,) = {batch.options for batch in Batchline().batches.list()}

    assert state.is_completed()
    assert state.message == "2 found, 2 taken, 2 started, 2 written back"
    assert statuses(open_services(), summary) == [BatchStatus.COMPLETED] * 2
    assert options.model_dump(exclude_unset=True) == {"on_limit": "stop"}
    assert len(list((inbox.parent / "outbox").iterdir())) == 2
    assert len([record for record in caplog.records if record.message.startswith("taken ")]) == 2


@pytest.mark.system
@pytest.mark.usefixtures("prefect_server")
def test_sync_flow_completes_when_batch_fails(inbox, start_simulator, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", start_simulator(server_error=1.0).base_url)
    monkeypatch.setenv("BATCHLINE_MAX_ATTEMPTS", "1")

    state = sync_source(str(inbox), via="process", return_state=True)

    assert state.is_completed()
    assert state.result().started == 2
    assert statuses(open_services(), state.result()) == [BatchStatus.FAILED] * 2


@pytest.mark.system
@pytest.mark.usefixtures("prefect_server")
def test_sync_flow_starts_each_batch_once_by_deployment(inbox):
    deployment_id = process_batch.to_deployment("process-batch").apply()

    summary = sync_source(str(inbox))
    services = open_services()
    for event in summary.events:  # as after a death between the start and its note
        if event.kind == "started":
            change_synced_files(services.records, [event.batch_id], started_at=None)
    again = sync_source(str(inbox))

    assert (summary.taken, summary.started, again.taken, again.started) == (2, 2, 0, 2)
    assert statuses(services, summary) == [BatchStatus.VALIDATING] * 2
    with get_client(sync_client=True) as client:
        where = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
        runs = client.read_flow_runs(deployment_filter=where)
    ours = [event.batch_id for event in summary.events if event.kind == "started"]
    begun = [run.parameters["batch_id"] for run in runs]  # other tests' batches may be among them
    assert sorted(each for each in begun if each in ours) == sorted(ours)


@pytest.mark.system
@pytest.mark.usefixtures("prefect_server")
def test_sync_flow_without_deployment_reports_failure_and_starts_later(inbox):
    first = sync_source(str(inbox), deployment="process-batch/none")
    second = sync_source(str(inbox), via="process")

    assert (first.taken, first.started, first.failed) == (2, 0, 1)
    assert "there is no deployment" in first.events[-1].reason
    assert (second.unchanged, second.started) == (2, 2)


@pytest.mark.system
@pytest.mark.usefixtures("prefect_server")
def test_sync_flow_with_forbidden_folder_fails(inbox):
    state = sync_source("/etc", return_state=True)

    assert state.is_failed()
    assert "not below an allowed root" in state.message


@pytest.mark.system
@pytest.mark.usefixtures("prefect_server")
def test_quarantined_file_emits_event_and_artifact_row(inbox):
    (inbox / "bad.jsonl").write_text('{"custom_id": "a|b"}\nno json\n')

    state = sync_source(str(inbox), via="process", return_state=True)

    assert state.result().quarantined == 1
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        wanted = {
            "event": {"name": ["batchline.file-quarantined"]},
            "related": {"id": [f"prefect.flow-run.{run_id}"]},
        }
        [event] = until(lambda: client._client.post("/events/filter", json={"filter": wanted}).json()["events"])
    [artifact] = pages_of(run_id)
    assert "1 quarantined" in artifact.data
    assert "quarantine/bad.jsonl" in artifact.data.replace("\\", "")
    assert event["resource"]["prefect.resource.name"] == "bad.jsonl"
    assert event["payload"]["file"] == str(inbox / "bad.jsonl")
    assert event["payload"]["place"] == str(inbox.parent / "quarantine" / "bad.jsonl")
    assert "errors, first line 1" in event["payload"]["reason"]


@pytest.mark.system
@pytest.mark.usefixtures("prefect_server")
def test_sync_flow_without_problems_has_no_artifact(inbox):
    state = sync_source(str(inbox), via="process", return_state=True)

    assert pages_of(state.state_details.flow_run_id) == []


def pages_of(run_id):
    """The Markdown on the page of the run itself."""
    ours = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), type=ArtifactFilterType(any_=["markdown"])
    )
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ours)
