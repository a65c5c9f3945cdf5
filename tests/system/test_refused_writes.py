"""Storage that refuses every write while a server runs a batch, and dies: what is paid for twice stays bounded.

`python -m bench --only refused_writes` measures the same for ten minutes.
"""

import signal
import time

from helpers.command_line import running_command
from helpers.forwarding_proxy import Handler, forward, forwarding_proxy, respond_with
from helpers.polling import until
from helpers.request_files import write_requests

from batchline import Batchline
from batchline.models.settings import to_environment

REQUESTS, IN_FLIGHT, LATENCY_S, FLUSH_S = 900, 16, 0.2, 2.0
MOST = IN_FLIGHT + IN_FLIGHT / LATENCY_S * FLUSH_S
"""Requests in flight, and those that are answered within one flush interval."""

refuse = respond_with(503, "SlowDown")


def refuses_writes(request: Handler) -> bool:
    """Answers 503 to every write."""
    return request.command in {"PUT", "POST"} and refuse(request)


def test_rejected_writes_bound_number_of_repeated_requests(start_simulator, s3_server, tmp_path):
    upstream = start_simulator(latency_s=LATENCY_S)
    received = lambda: int(upstream.counters()["received"])  # noqa: E731
    with forwarding_proxy(s3_server.url) as front:
        settings = s3_server.settings(
            s3_endpoint_url=front.url,
            base_url=upstream.base_url,
            max_in_flight=IN_FLIGHT,
            flush_interval_s=FLUSH_S,
        )
        client = Batchline(settings)
        file = client.files.create(file=write_requests(tmp_path / "r.jsonl", REQUESTS))
        batch = client.batches.create(input_file_id=file.id, via=None)
        serve = ("serve", "--port", "0")

        with running_command(*serve, folder=tmp_path, **to_environment(settings)) as first:
            until(lambda: received() >= 300)
            front.rule = refuses_writes
            sent = received()
            first.wait_for("sending waits for storage")
            time.sleep(3)
            first.kill(signal.SIGKILL)
        with running_command(*serve, folder=tmp_path, **to_environment(settings)) as second:
            second.wait_for("sending waits for storage")
            time.sleep(3)
            sent_meanwhile = received() - sent
            front.rule = forward
            until(lambda: client.batches.retrieve(batch.id).status == "completed")
        ended = client.batches.retrieve(batch.id)
        client.close()

    assert sent_meanwhile <= MOST
    assert received() - REQUESTS <= MOST
    assert ended.request_counts.completed == REQUESTS
