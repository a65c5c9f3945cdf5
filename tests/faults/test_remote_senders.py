"""A batch whose chunks other processes send: they stop with the runner, count to it, and make no part twice."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle

import msgspec
import pytest
from helpers.batch_assertions import check_results, received
from helpers.polling import until
from helpers.runner_process import RunnerProcess

from batchline.engine.lease import BatchLease, acquire_lease
from batchline.engine.lease import active_lease as held_here
from batchline.engine.pipeline import pending_chunks, run
from batchline.engine.remote_sender import join_batch
from batchline.engine.services import Services
from batchline.models.errors import BatchPaused, Interrupted, InvalidInput, LeaseLost
from batchline.models.status import BatchStatus
from batchline.steps.send_chunk import ChunkResult, ChunkSpec, send_chunk
from batchline.steps.validate import validate
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord

pytestmark = pytest.mark.system

SENDER = """
import sys
import msgspec, pyarrow.parquet
from batchline.steps.send_chunk import ChunkSpec, send_chunk
from batchline.engine.services import open_services
from batchline.engine.remote_sender import join_batch
spec = msgspec.json.decode(sys.argv[1], type=ChunkSpec)
with join_batch(open_services(), spec) as sender:
    send_chunk(spec, sender)
"""


def send(services: Services, order: ChunkSpec) -> ChunkResult:
    """Send the chunk as a process that has not the batch's lease does."""
    with join_batch(services, order) as part:
        return send_chunk(order, part)


def sent_by(hold: BatchLease, senders: Sequence[Services], todo: Sequence[ChunkSpec]) -> list[ChunkResult]:
    """Have the engines send the chunks in turn, all at once."""
    hold.allow_remote_senders()
    with ThreadPoolExecutor() as pool:
        futures = [
            pool.submit(send, services, order) for order, services in zip(todo, cycle(senders), strict=False)
        ]
        results = [future.result() for future in futures]
    hold.exchange_reports()
    return results


@pytest.fixture
def run_by(create_batch: Callable[..., BatchRecord]) -> Iterator[Callable[..., tuple[BatchRecord, Future]]]:
    """Start a batch of so many requests whose chunks those engines send; its record, and what it ends in."""
    with ThreadPoolExecutor() as pool:

        def start_runner(
            services: Services, senders: Sequence[Services], count: int
        ) -> tuple[BatchRecord, Future]:
            batch = create_batch(services, count)

            def work() -> BatchRecord:
                with acquire_lease(services, batch.id) as hold:
                    return run(hold, send_all=lambda todo: sent_by(hold, senders, todo))

            return batch, pool.submit(work)

        yield start_runner


@contextmanager
def held(services: Services, batch: BatchRecord) -> Iterator[tuple[BatchLease, list[ChunkSpec]]]:
    """Hold the batch, validated, with the chunks that are to be sent."""
    with acquire_lease(services, batch.id) as hold:
        plan = validate(hold)
        assert plan is not None
        hold.allow_remote_senders()
        yield hold, pending_chunks(hold, plan)


def test_remote_requests_are_counted_and_each_finished_once(start_simulator, make_services, run_by):
    simulator = start_simulator(latency_s=0.3)
    runner, *senders = [
        make_services(simulator.base_url, upstream={"max_in_flight": 30, "name": name}, chunk_requests=100)
        for name in ("runner", "first", "second")
    ]

    batch, end = run_by(runner, senders, 600)

    until(lambda: 0 < runner.records.get_batch(batch.id).completed < 600)
    check_results(runner, end.result(), 600)
    assert received(simulator) == 600
    assert runner.started_dispatcher is None or not runner.dispatcher.metrics.outcomes
    assert not runner.records.read_sender_reports(batch.id, 1)


def test_sender_continues_after_unexpected_report_error(
    start_simulator, make_services, run_by, monkeypatch, caplog
):
    simulator = start_simulator(latency_s=0.3)
    runner, sender = (
        make_services(simulator.base_url, upstream={"max_in_flight": 20, "name": name}, chunk_requests=100)
        for name in ("runner", "sender")
    )
    batch, end = run_by(runner, [sender], 400)
    until(lambda: received(simulator) > 20)

    with monkeypatch.context() as broken:
        broken.setattr(sender.records, "report_sender", lambda *_: 1 / 0)
        until(lambda: "ZeroDivisionError" in caplog.text)

    check_results(runner, end.result(), 400)
    assert received(simulator) == 400
    assert runner.records.get_batch(batch.id).completed == 400


def test_progress_combines_all_senders(start_simulator, make_services, create_batch):
    services, *senders = [
        make_services(start_simulator(latency_s=0.5).base_url, upstream={"max_in_flight": 20}, chunk_requests=100)
        for _ in range(3)
    ]
    with held(services, create_batch(services, 400)) as (hold, todo), ThreadPoolExecutor() as pool:
        for order, sender in zip(todo, cycle(senders), strict=False):
            pool.submit(send, sender, order)

        until(lambda: hold.progress().in_flight == 40)
        until(lambda: hold.progress().total_tokens > 0)
        until(lambda: hold.counts() == (400, 0))

        until(lambda: hold.progress().in_flight == 0)


def test_cancel_stops_all_senders_and_cancels_unsent_requests(start_simulator, make_services, run_by):
    simulator = start_simulator(latency_s=0.3)
    runner, *senders = [
        make_services(simulator.base_url, upstream={"max_in_flight": 5}, chunk_requests=100) for _ in range(3)
    ]
    batch, end = run_by(runner, senders, 600)
    until(lambda: received(simulator) > 20)

    runner.records.change_status(batch.id, BatchStatus.CANCELLING, now=int(time.time()))

    ended = end.result()
    assert ended.status is BatchStatus.CANCELLED
    check_results(runner, ended, 600)
    assert received(simulator) < 200


def test_interrupted_runner_stops_senders_and_batch_can_be_resumed(start_simulator, make_services, run_by):
    simulator = start_simulator(latency_s=0.2)
    runner, sender = [
        make_services(simulator.base_url, upstream={"max_in_flight": 10}, chunk_requests=100) for _ in range(2)
    ]
    batch, end = run_by(runner, [sender], 400)
    until(lambda: received(simulator) > 50)

    held_here(batch.id).interrupt("its process was told to end")

    with pytest.raises(Interrupted, match="its process was told to end"):
        end.result()
    assert received(simulator) < 300
    with acquire_lease(runner, batch.id) as hold:
        ended = run(hold, send_all=lambda todo: sent_by(hold, [sender], todo))
    check_results(runner, ended, 400)
    assert received(simulator) == 400


def test_sender_stops_when_runner_is_gone(start_simulator, make_services, create_batch):
    simulator = start_simulator(latency_s=0.2)
    runner, sender = [
        make_services(simulator.base_url, upstream={"max_in_flight": 5}, chunk_requests=200) for _ in range(2)
    ]
    with ThreadPoolExecutor() as pool:
        with held(runner, create_batch(runner, 200)) as (_, todo):
            sending = pool.submit(send, sender, todo[0])
            until(lambda: received(simulator) > 10)

        with pytest.raises(LeaseLost, match="the run that it sends for is over"):
            sending.result()
    before = received(simulator)
    with pytest.raises(LeaseLost, match="the run that it sends for is over"):
        send(sender, todo[0])
    assert received(simulator) == before < 100


def test_sender_stops_within_half_lease_of_silent_runner(
    start_simulator, make_services, create_batch, monkeypatch
):
    simulator = start_simulator(latency_s=0.1)
    runner, sender = [
        make_services(simulator.base_url, upstream={"max_in_flight": 2}, chunk_requests=400, lease_s=2.0)
        for _ in range(2)
    ]
    with ThreadPoolExecutor() as pool, held(runner, create_batch(runner, 400)) as (hold, todo):
        sending = pool.submit(send, sender, todo[0])
        until(lambda: received(simulator) > 30)  # heartbeats have been seen to come
        silenced_at, before = time.monotonic(), received(simulator)
        monkeypatch.setattr(hold.records, "heartbeat", lambda *_, **__: BatchStatus.IN_PROGRESS)

        with pytest.raises(LeaseLost, match="has stopped responding"):
            sending.result()
        stopped = received(simulator)

    assert time.monotonic() - silenced_at < 10
    assert stopped - before < 2 * 1.5 / 0.1 + 5


def test_chunk_sent_twice_yields_one_part(start_simulator, make_services, create_batch):
    quick, slow = start_simulator(latency_s=0.01), start_simulator(latency_s=0.3)
    runner, first, second = [
        make_services(simulator.base_url, chunk_requests=100) for simulator in (quick, quick, slow)
    ]
    batch = create_batch(runner, 100)
    with ThreadPoolExecutor() as pool, held(runner, batch) as (hold, [order]):
        late = pool.submit(send, second, order)
        until(lambda: received(slow) > 10)
        early = send(first, order)

        assert late.result() == early
        hold.exchange_reports()
        assert hold.counts() == (100, 0)
        keys = {info.key for info in runner.store.list_objects(layout.parts_prefix(batch.id, 0))}
    assert sorted(key.rpartition(".")[2] for key in keys) == ["jsonl", "parquet"]
    with acquire_lease(runner, batch.id) as hold:
        ended = run(hold, send_all=lambda todo: sent_by(hold, [first], todo))
    check_results(runner, ended, 100)


def test_key_refused_at_all_senders_pauses_batch_and_fails_nothing(start_simulator, make_services, run_by):
    simulator = start_simulator(api_key="right", latency_s=0.05)
    runner, *senders = [
        make_services(simulator.base_url, upstream={"max_in_flight": 4, "api_key": "wrong"}, chunk_requests=100)
        for _ in range(3)
    ]

    batch, end = run_by(runner, senders, 400)

    with pytest.raises(BatchPaused, match="check the upstream's api_key"):
        end.result()
    batch = runner.records.get_batch(batch.id)
    assert batch.pause is not None
    assert batch.pause.code == "unauthorized"
    assert (batch.completed, batch.failed) == (0, 0)
    assert received(simulator) <= 2 * 4


def test_key_refused_at_one_sender_pauses_batch_and_keeps_the_answers_of_others(
    start_simulator, make_services, create_batch
):
    open_door, closed = start_simulator(), start_simulator(api_key="right", latency_s=0.1)
    runner = make_services(open_door.base_url, chunk_requests=100)
    refused = make_services(closed.base_url, upstream={"api_key": "wrong"}, chunk_requests=100)
    with held(runner, create_batch(runner, 200)) as (hold, [first, second]):
        assert send(runner, first).completed == 100

        result = send(refused, second)

        assert (result.completed, result.failed, result.is_finished) == (0, 0, False)
        hold.exchange_reports()
        assert hold.session.stop_reason is not None
        assert hold.session.stop_reason.limit == "unauthorized"
        assert hold.counts() == (100, 0)


def test_chunk_of_killed_sender_is_continued_elsewhere(start_simulator, make_services, create_batch):
    simulator = start_simulator(latency_s=0.1)
    runner, sender = [
        make_services(simulator.base_url, upstream={"max_in_flight": 8}, chunk_requests=200) for _ in range(2)
    ]
    batch = create_batch(runner, 200)
    with acquire_lease(runner, batch.id) as hold:

        def send_all(todo: Sequence[ChunkSpec]) -> list[ChunkResult]:
            [order] = todo
            process = RunnerProcess(runner.settings, msgspec.json.encode(order).decode(), program=SENDER)
            until(lambda: received(simulator) > 80)
            process.kill()
            return sent_by(hold, [sender], todo)

        ended = run(hold, send_all=send_all)

    check_results(runner, ended, 200)
    assert received(simulator) <= 200 + 8 + 8 * (0.2 / 0.1 + 1)


def test_sender_with_other_database_is_rejected(start_simulator, make_services, create_batch, tmp_path):
    runner = make_services(start_simulator().base_url)
    stranger = make_services(start_simulator().base_url, home=tmp_path / "elsewhere")
    with (
        held(runner, create_batch(runner, 10)) as (_, [order]),
        pytest.raises(InvalidInput, match="the same BATCHLINE_DATABASE_URL"),
    ):
        send(stranger, order)
