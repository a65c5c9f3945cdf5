"""The flow on a real Prefect server."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from uuid import UUID

import pytest
from helpers.batch_assertions import new_batch
from helpers.polling import until
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.runtime import flow_run

from batchline import Batchline
from batchline.engine.ingest import store_input_file
from batchline.engine.retry import retry_batch
from batchline.engine.services import using_services
from batchline.flows.process_batch import process_batch
from batchline.models.batches import BatchResponse, ListBatchesQuery
from batchline.models.errors import BatchEnded, BatchPaused, Interrupted, InvalidInput, StorageFault
from batchline.models.status import BatchStatus
from batchline.orchestration.artifacts import ProgressArtifact
from batchline.storage.objects import layout

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("prefect_server")]


def run_flow(services, **parameters) -> State[BatchResponse]:
    with using_services(services):
        return process_batch(**parameters, return_state=True)


def flow_run_of(state: State) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def task_runs_of(state: State) -> list[str]:
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    return sorted(run.name for run in runs)


def test_flow_run_of_successful_batch_is_completed_and_named(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url, chunk_requests=100)
    stored = store_input_file(services, chat_file(350))

    options = {"on_truncated": "fail", "on_limit": "pause"}
    state = run_flow(services, input_file_id=stored.id, metadata={"team": "search"}, options=options)

    batch = state.result()
    assert batch.model_dump()["options"] == {"on_truncated": "fail"}  # a form submits the defaults as well
    assert state.is_completed()
    assert (batch.status, batch.request_counts.completed, batch.metadata) == (
        BatchStatus.COMPLETED,
        350,
        {"team": "search"},
    )
    assert flow_run_of(state).name == f"{stored.filename} {batch.id}"
    assert "350 ok" in (state.message or "")


def test_flow_run_has_one_task_run_per_chunk_and_step(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url, chunk_requests=100)
    stored = store_input_file(services, chat_file(350))

    state = run_flow(services, input_file_id=stored.id)

    assert len(task_runs_of(state)) == 4 + 3


def test_flow_run_of_invalid_file_fails_with_reason(start_simulator, make_services, chat_file):
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    path = chat_file(10)
    path.write_text(path.read_text() + "not json\n")
    stored = store_input_file(services, path)

    state = run_flow(services, input_file_id=stored.id)

    assert state.is_failed()
    assert "line 11" in (state.message or "")
    assert isinstance(state.result(raise_on_failure=False), BatchEnded)
    assert simulator.counters()["received"] == 0


def test_flow_run_without_success_fails_with_error_file(start_simulator, make_services, chat_file):
    services = make_services(start_simulator(server_error=1.0).base_url, upstream={"max_attempts": 2})
    stored = store_input_file(services, chat_file(20))

    state = run_flow(services, input_file_id=stored.id)

    ended = state.result(raise_on_failure=False)
    assert state.is_failed()
    assert isinstance(ended, BatchEnded)
    assert len(services.store.read(layout.errors_key(ended.batch_id)).splitlines()) == 20


def test_flow_run_with_batch_id_runs_existing_batch(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    made = new_batch(services, chat_file(20))

    state = run_flow(services, batch_id=made.id)

    assert state.result().id == made.id


def test_flow_run_of_finished_batch_sends_nothing(start_simulator, make_services, chat_file):
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    stored = store_input_file(services, chat_file(20))
    first = run_flow(services, input_file_id=stored.id).result()

    again = run_flow(services, batch_id=first.id)

    assert again.is_completed()
    assert simulator.counters()["received"] == 20


def test_flow_run_reads_input_uri_below_source_roots(start_simulator, make_services, chat_file):
    path = chat_file(15)
    services = make_services(start_simulator().base_url, source_roots=[str(path.parent)])

    state = run_flow(services, input_uri=str(path))

    assert state.result().request_counts.completed == 15


@pytest.mark.parametrize(
    "parameters", [{}, {"input_file_id": "file-1", "input_uri": "/x.jsonl"}], ids=["neither", "both"]
)
def test_flow_run_without_exactly_one_input_is_rejected(parameters, start_simulator, make_services):
    state = run_flow(make_services(start_simulator().base_url), **parameters)

    error = state.result(raise_on_failure=False)
    assert isinstance(error, InvalidInput)
    assert "input_file_id" in str(error)


def test_flow_run_retry_continues_its_batch(start_simulator, make_services, chat_file, monkeypatch):
    simulator = start_simulator()
    services = make_services(simulator.base_url, chunk_requests=50)
    stored = store_input_file(services, chat_file(200))
    put = type(services.store).put
    failing = ["once"]

    def put_or_fail(self, key: str, data: bytes) -> None:
        if key == layout.report_data_key(key.split("/")[1]) and failing:
            failing.clear()
            raise Interrupted("stopped in the middle")
        put(self, key, data)

    monkeypatch.setattr(type(services.store), "put", put_or_fail)
    retried = process_batch.with_options(retries=1, retry_delay_seconds=0)
    with using_services(services):
        state = retried(input_file_id=stored.id, return_state=True)

    assert not failing
    assert state.result().request_counts.completed == 200
    assert len(list((services.settings.home / "storage" / "batches").iterdir())) == 1
    assert simulator.counters()["received"] == 200


def test_task_is_retried_after_storage_failure(start_simulator, make_services, chat_file, monkeypatch):
    simulator = start_simulator()
    services = make_services(simulator.base_url, chunk_requests=50)
    stored = store_input_file(services, chat_file(200))
    put, failing = type(services.store).put, ["plan.json", "report.json"]

    def put_or_fail(self, key: str, data: bytes) -> None:
        if key.rpartition("/")[2] in failing:
            failing.remove(key.rpartition("/")[2])
            raise StorageFault("the disk is full")
        put(self, key, data)

    monkeypatch.setattr(type(services.store), "put", put_or_fail)
    state = run_flow(services, input_file_id=stored.id)

    assert not failing
    assert state.result().request_counts.completed == 200
    assert simulator.counters()["received"] == 200


def test_cancel_is_noticed_when_progress_artifact_fails(start_simulator, make_services, chat_file, monkeypatch):
    monkeypatch.setattr(ProgressArtifact, "show_progress", lambda *_: 1 / 0)
    simulator = start_simulator(latency_s=0.3)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 4}, grace_s=1.0)
    stored = store_input_file(services, chat_file(2_000))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(copy_context().run, run_flow, services, input_file_id=stored.id)
        until(lambda: simulator.counters()["received"] >= 80)  # later than progress is first shown
        [batch] = Batchline(services=services).batches.records()
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(batch.last_flow_run_id), State(type=StateType.CANCELLING), force=True)
        run.result(120)

    assert services.records.get_batch(batch.id).status is BatchStatus.CANCELLED
    assert simulator.counters()["received"] < 2_000


def test_retried_batch_runs_in_new_flow_run(start_simulator, make_services, chat_file):
    simulator = start_simulator(server_error=0.3)
    services = make_services(simulator.base_url, upstream={"max_attempts": 1}, chunk_requests=40)
    stored = store_input_file(services, chat_file(120))
    first = run_flow(services, input_file_id=stored.id).result()
    received = simulator.counters()["received"]

    retry_batch(services, first.id)
    state = run_flow(services, batch_id=first.id)

    again = state.result()
    assert again.id == first.id
    assert simulator.counters()["received"] == received + first.request_counts.failed
    assert again.request_counts.completed > first.request_counts.completed
    lines = [
        json.loads(line)["custom_id"]
        for key in (layout.output_key(first.id), layout.errors_key(first.id))
        for line in services.store.read(key).splitlines()
    ]
    assert sorted(lines) == sorted(f"request-{number}" for number in range(120))


def test_prompts_and_keys_are_not_sent_to_prefect_server(start_simulator, make_services, chat_file):
    services = make_services(
        start_simulator(api_key="sk-secret-1234").base_url, upstream={"api_key": "sk-secret-1234"}
    )
    stored = store_input_file(services, chat_file(30, prompt=lambda number: f"a private prompt {number}"))

    state = run_flow(services, input_file_id=stored.id)

    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        )
        shown = [run.model_dump(mode="json") for run in (flow_run_of(state), *runs)]
    assert state.is_completed()
    assert "private prompt" not in json.dumps(shown)
    assert "sk-secret" not in json.dumps(shown)


def test_batch_created_in_flow_belongs_to_its_flow_run(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    stored = store_input_file(services, chat_file(5))

    @flow(name="parent")
    def parent() -> UUID:
        assert flow_run.id
        return UUID(process_batch(input_file_id=stored.id).id.removeprefix("batch-"))

    with using_services(services):
        made = parent()

    assert services.records.get_batch(f"batch-{made.hex}").flow_run_id is not None


@task(retries=1)
def in_a_task(file_id: str, fail: list[str]) -> str:
    made = process_batch.with_options(persist_result=False)(input_file_id=file_id).id
    if "task" in fail:
        fail.remove("task")
        raise RuntimeError("the task fails after the batch")
    return made


def test_retried_parent_flow_reuses_its_batches(start_simulator, make_services, chat_file):
    simulator = start_simulator()
    services = make_services(simulator.base_url)
    path = chat_file(20)
    first, other = store_input_file(services, path), store_input_file(services, chat_file(15))
    again = store_input_file(services, path)  # the same content, as a parent that stores its input itself has it
    fail, made = ["task", "parent"], []

    @flow(name="parent-with-retries", retries=1)
    def parent() -> None:
        alone = process_batch.with_options(persist_result=False)
        file_id = first.id if "parent" in fail else again.id
        kept = process_batch(input_file_id=file_id, metadata={"kept": "yes"})
        strict = alone(input_file_id=file_id, options={"on_truncated": "fail"})
        made.append([alone(input_file_id=file_id).id, strict.id, alone(input_file_id=file_id).id, kept.id])
        made[-1] += [in_a_task(other.id, fail)]
        if "parent" in fail:
            fail.remove("parent")
            raise RuntimeError("the parent fails after its batches")

    with using_services(services):
        parent()

    before, after = made
    assert before == after
    assert len(set(before)) == 5
    assert simulator.counters()["received"] == 4 * 20 + 15


def test_retried_parent_flow_with_other_file_creates_new_batch(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    files, made = [store_input_file(services, chat_file(count)).id for count in (5, 6)], []

    @flow(name="parent-with-another-file", retries=1)
    def parent() -> None:
        made.append(process_batch.with_options(persist_result=False)(input_file_id=files[len(made)]).id)
        if len(made) == 1:
            raise RuntimeError("once")

    with using_services(services):
        parent()

    assert len(set(made)) == 2


@pytest.mark.parametrize("share", [True, False])
def test_quota_is_shared_on_prefect_server_only_if_enabled(start_simulator, make_services, chat_file, share):
    upstream = {"name": f"shared-{share}", "requests_per_minute": 100_000}
    services = make_services(start_simulator(latency_s=0.05).base_url, upstream=upstream, share_budgets=share)

    assert run_flow(services, input_file_id=store_input_file(services, chat_file(20)).id).is_completed()
    services.dispatcher.close()

    def taken() -> dict[str, int]:
        with get_client(sync_client=True) as client:
            limits = client.read_global_concurrency_limits(limit=200)
        return {limit.name: limit.active_slots for limit in limits if f"shared-{share}" in limit.name}

    names = taken()
    prefix = f"batchline-shared-{share}"
    assert set(names) == (
        {f"{prefix}-in-flight", f"{prefix}-processes", f"{prefix}-requests-per-minute"} if share else set()
    )
    # What a busy server did not take back in time ends with its lease.
    until(lambda: not any(taken().get(f"{prefix}-{kind}", 0) for kind in ("in-flight", "processes")), 150)


# Paused batches


def pause_when_sending(services, simulator) -> None:
    """Pause the only batch as soon as some of its requests are sent."""
    until(lambda: simulator.counters()["received"] >= 8)
    (batch,), _ = services.records.list_records(ListBatchesQuery(), now=0)
    services.records.pause(batch.id, code="by_user", message="the price went up")


def test_flow_run_of_paused_batch_ends_in_state_paused_and_runs_again(start_simulator, make_services, chat_file):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 4})
    stored = store_input_file(services, chat_file(200))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(pause_when_sending, services, simulator)
        state = run_flow(services, input_file_id=stored.id)

    paused = state.result(raise_on_failure=False)
    assert (state.name, state.is_failed(), type(paused)) == ("Paused", True, BatchPaused)
    assert "is paused: the price went up; to continue, run it again" in (state.message or "")
    assert 8 <= services.records.get_batch(paused.batch_id).completed < 200

    again = run_flow(services, batch_id=paused.batch_id)

    assert again.result().request_counts.completed == 200
    assert simulator.counters()["received"] == 200


def test_caller_gets_batch_paused_and_its_own_retries_do_not_resume(start_simulator, make_services, chat_file):
    simulator = start_simulator(latency_s=0.1)
    services = make_services(simulator.base_url, upstream={"max_in_flight": 4})
    stored = store_input_file(services, chat_file(100))
    raised: list[BaseException] = []

    @flow(name="nightly", retries=1, retry_delay_seconds=0)
    def nightly() -> BatchResponse:
        try:
            return process_batch(input_file_id=stored.id)
        except BatchPaused as paused:
            raised.append(paused)
            raise

    with using_services(services), ThreadPoolExecutor(1) as pool:
        pool.submit(pause_when_sending, services, simulator)
        state = nightly(return_state=True)

    assert state.is_failed()
    assert len(raised) == 2
    sent = simulator.counters()["received"]
    assert 8 <= sent < 100
    (batch,), _ = services.records.list_records(ListBatchesQuery(), now=0)
    assert batch.pause is not None

    with using_services(services):
        assert process_batch(batch_id=batch.id).request_counts.completed == 100
    assert simulator.counters()["received"] == 100
