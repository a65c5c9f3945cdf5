"""An S3 server that refuses for a while: the batch claims nothing that is not stored, and goes on afterwards."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from botocore.retries.standard import ExponentialBackoff
from helpers.batch_assertions import check_results, check_unfinished, count_saved, interrupt_run, received
from helpers.forwarding_proxy import ForwardingProxy, Handler, forward, forwarding_proxy, respond_with
from helpers.polling import until
from helpers.storage_servers import S3Server

from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.errors import StorageFault
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.steps import segment_writer

pytestmark = pytest.mark.system

REQUESTS = 400
IN_FLIGHT = 32
refuse = respond_with(503, "SlowDown")


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[ForwardingProxy]:
    """A proxy before the S3 server."""
    with forwarding_proxy(s3_server.url) as server:
        yield server


@pytest.fixture
def simulator(start_simulator: Callable[..., Simulator]) -> Simulator:
    return start_simulator(latency_s=0.1)


@pytest.fixture
def services(
    make_services: Callable[..., Services],
    s3_server: S3Server,
    proxy: ForwardingProxy,
    simulator: Simulator,
    monkeypatch,
) -> Services:
    """Services that store through the proxy, whose client tries again without waiting."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.01)
    place = s3_server.settings(s3_endpoint_url=proxy.url)
    chosen = place.model_dump(include=place.model_fields_set)
    return make_services(simulator.base_url, upstream={"max_in_flight": IN_FLIGHT}, chunk_requests=100, **chosen)


def refusing(pattern: str) -> Callable[[Handler], bool]:
    """Answers 503 to the requests whose method and path match."""
    wanted = re.compile(pattern)
    return lambda request: bool(wanted.search(f"{request.command} {request.path}")) and refuse(request)


@contextmanager
def out_of_order(proxy: ForwardingProxy, pattern: str) -> Iterator[None]:
    """Answer 503 to requests whose method and path match, until the block ends."""
    proxy.rule = refusing(pattern)
    yield
    proxy.rule = forward


def test_short_write_outage_pauses_sending_and_repeats_no_requests(
    services, proxy, simulator, create_batch, in_background, caplog
):
    batch = create_batch(services, REQUESTS)
    run = in_background(services, batch)
    until(lambda: count_saved(services, batch))
    with out_of_order(proxy, "^(PUT|POST) "):
        until(lambda: "sending waits for storage" in caplog.text)
        sent = received(simulator)
        check_unfinished(services, batch, BatchStatus.IN_PROGRESS)
        time.sleep(1)
        assert received(simulator) - sent <= IN_FLIGHT

    ended = run.result()

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, REQUESTS)
    assert received(simulator) == REQUESTS


def test_long_write_outage_stops_run_and_keeps_saved_answers(
    services, proxy, simulator, create_batch, in_background, monkeypatch
):
    monkeypatch.setattr(segment_writer, "STORAGE_PATIENCE_S", 0.5)
    batch = create_batch(services, REQUESTS)
    run = in_background(services, batch)
    until(lambda: count_saved(services, batch))
    with out_of_order(proxy, "^(PUT|POST) "), pytest.raises(StorageFault, match="S3 fails"):
        run.result()
    check_unfinished(services, batch, BatchStatus.IN_PROGRESS)
    sent, kept = received(simulator), count_saved(services, batch)

    ended = run_local(services, batch.id)

    assert 0 < kept < REQUESTS
    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, REQUESTS)
    assert received(simulator) - sent == REQUESTS - kept


def test_resumed_batch_sends_nothing_before_storage_accepts_writes(
    services, proxy, simulator, create_batch, in_background, monkeypatch
):
    monkeypatch.setattr(segment_writer, "STORAGE_PATIENCE_S", 0.5)
    batch = create_batch(services, REQUESTS)
    interrupt_run(batch, in_background(services, batch), once=lambda: received(simulator) > 150)
    sent = received(simulator)

    with out_of_order(proxy, "^(PUT|POST) "), pytest.raises(StorageFault, match="S3 fails"):
        run_local(services, batch.id)

    assert received(simulator) == sent
    check_results(services, run_local(services, batch.id), REQUESTS)
    assert received(simulator) == REQUESTS


FINAL_FILES = {
    "output": r"^(PUT|POST) .*batch-\w+/output\.jsonl",
    "parts to read": r"^GET .*parts/",
}


@pytest.mark.parametrize("pattern", FINAL_FILES.values(), ids=FINAL_FILES)
def test_failed_final_files_are_written_later_without_requests(pattern, services, proxy, simulator, create_batch):
    batch = create_batch(services, 200)
    with out_of_order(proxy, pattern), pytest.raises(StorageFault, match="S3 fails"):
        run_local(services, batch.id)
    assert services.records.get_batch(batch.id).status is BatchStatus.FINALIZING

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 200)
    assert received(simulator) == 200


READS = {"the list of parts": r"^GET .*list-type=2", "the input": r"^GET .*files/"}


@pytest.mark.parametrize("pattern", READS.values(), ids=READS)
def test_read_outage_on_resume_repeats_no_saved_requests(
    pattern, services, proxy, simulator, create_batch, in_background
):
    batch = create_batch(services, REQUESTS)
    interrupt_run(batch, in_background(services, batch), once=lambda: received(simulator) > 150)
    sent, kept = received(simulator), count_saved(services, batch)
    with out_of_order(proxy, pattern), pytest.raises(StorageFault, match="S3 fails"):
        run_local(services, batch.id)
    assert received(simulator) == sent

    ended = run_local(services, batch.id)

    check_results(services, ended, REQUESTS)
    assert received(simulator) - sent == REQUESTS - kept


def test_failed_segment_deletion_does_not_prevent_completion(services, proxy, simulator, create_batch):
    batch = create_batch(services, REQUESTS)
    with out_of_order(proxy, r"^POST .*\?delete"):
        ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, REQUESTS)
    assert received(simulator) == REQUESTS
