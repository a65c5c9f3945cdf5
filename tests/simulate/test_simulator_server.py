"""The simulator as a server and as a process: connections, counters, beginning and end."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.polling import until
from helpers.simulator_client import CHAT, address, chat_body, connected, request_bytes, send, send_raw

from batchline.models.errors import BatchlineError
from batchline.simulate import Simulator, SimulatorOptions

CLOSE = "connection: close"
PARENT = """
import sys
from batchline.simulate import Simulator
with Simulator() as simulator:
    print(simulator.base_url, flush=True)
    sys.stdin.read()
"""


def prompts_answered(answer: bytes) -> list[int]:
    """Return the prompt tokens of each response among the bytes, in order."""
    return [int(found) for found in re.findall(rb'"prompt_tokens":(\d+)', answer)]


def test_connection_is_reused_for_many_requests(plain_simulator):
    connection = connected(plain_simulator)
    found = [send(plain_simulator, chat_body(f"{number}"), on=connection).status for number in range(20)]
    connection.close()
    assert found == [200] * 20


def test_connection_close_header_closes_connection(plain_simulator):
    assert send_raw(plain_simulator, [request_bytes(chat_body(), CLOSE)]).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("latency_s", [0.0, 0.05], ids=["at once", "after a while"])
def test_pipelined_requests_are_answered_in_order(latency_s, start_simulator):
    bodies = [chat_body("x" * 4 * size) for size in (5, 1, 4, 2, 3)]
    *first, last = map(request_bytes, bodies)

    answer = send_raw(start_simulator(latency_s=latency_s), [*first, request_bytes(bodies[-1], CLOSE)])

    assert last
    assert prompts_answered(answer) == [5, 1, 4, 2, 3]


def test_pipelined_errors_after_slow_response_are_all_sent(start_simulator):
    simulator = start_simulator(latency_s=0.2, requests_per_minute=1)
    requests = [request_bytes(chat_body(f"{number}")) for number in range(600)]

    answer = send_raw(simulator, [b"".join(requests), request_bytes(chat_body(), CLOSE)])

    assert (answer.count(b"HTTP/1.1 200 "), answer.count(b"HTTP/1.1 429 ")) == (1, 600)


def test_request_sent_in_small_pieces_is_one_request(plain_simulator):
    whole = request_bytes(chat_body("piece by piece"), CLOSE)
    assert prompts_answered(send_raw(plain_simulator, [whole[at : at + 7] for at in range(0, len(whole), 7)])) == [
        4
    ]


def test_chunked_body_is_reassembled(plain_simulator):
    content = json.dumps(chat_body("in chunks")).encode()
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (content[:9], content[9:10], content[10:])
    )
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{CLOSE}\r\n\r\n".encode()

    assert prompts_answered(send_raw(plain_simulator, [head, chunks + b"0\r\n\r\n"])) == [3]
    assert plain_simulator.counters()["bytes_received"] == len(content)


def test_expect_100_continue_is_answered(plain_simulator):
    answer = send_raw(plain_simulator, [request_bytes(chat_body(), "expect: 100-continue", CLOSE)])
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_upgrade_request_is_rejected_with_reason(plain_simulator):
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA")
    answer = send_raw(plain_simulator, [request_bytes(chat_body(), *offer)])
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"send no Upgrade header" in answer


def test_non_http_input_is_rejected_and_connection_closed(plain_simulator):
    assert send_raw(plain_simulator, [b"\x16\x03\x01\x02\x00 this is TLS or nothing\r\n\r\n"]).startswith(
        b"HTTP/1.1 400 "
    )


def test_url_query_is_ignored_in_path(plain_simulator):
    assert send(plain_simulator, chat_body(), path=f"{CHAT}?api-version=7").status == 200


def test_large_body_is_received_completely(plain_simulator):
    assert send(plain_simulator, chat_body("x" * 4_000_000)).json["usage"]["prompt_tokens"] == 1_000_000


# Counters


def test_counters_report_received_requests(plain_simulator):
    for number in (1, 2, 2, 2):
        send(plain_simulator, chat_body(f"{number}"))
    send(plain_simulator, {"model": "other", "input": "x"}, path="/v1/embeddings")

    counted = plain_simulator.counters()
    assert (counted["received"], counted["distinct"], counted["repeated"]) == (5, 3, 2)
    assert (counted["answered_twice"], counted["statuses"]) == (1, {"200": 5})
    assert counted["models"] == {"m": 4, "other": 1}


def test_counters_are_zero_after_reset(plain_simulator):
    send(plain_simulator, chat_body())
    plain_simulator.reset()
    counted = plain_simulator.counters()
    assert {name: count for name, count in counted.items() if count} == {}


def test_health_and_model_requests_are_not_counted(plain_simulator):
    send(plain_simulator, path="/healthz", method="GET")
    send(plain_simulator, path="/v1/models", method="GET")
    assert plain_simulator.counters()["received"] == 0


def test_received_count_equals_sum_of_outcomes(start_simulator):
    shares = {
        "rate_limited": 0.1,
        "server_error": 0.1,
        "dropped": 0.1,
        "cut_off": 0.1,
        "truncated": 0.1,
        "html": 0.05,
        "error_object": 0.05,
        "hanging": 0.1,
    }
    simulator = start_simulator(**shares, latency="uniform", latency_s=0.1)

    def try_it(number: int) -> None:
        # The impatient half leaves before many answers come.
        with contextlib.suppress(OSError, http.client.HTTPException):
            send(simulator, chat_body(f"{number}"), timeout_s=0.1 if number % 2 else 1.0)

    with ThreadPoolExecutor(max_workers=32) as pool:
        list(pool.map(try_it, range(200)))

    without_response = ("dropped", "cut_off", "hanging")

    def unanswered() -> list[int]:
        counted = simulator.counters()
        return [counted["abandoned"], *(counted["faults"].get(name, 0) for name in without_response)]

    until(lambda: sum(simulator.counters()["statuses"].values()) + sum(unanswered()) == 200)
    assert simulator.counters()["received"] == 200
    assert min(unanswered()) > 0


def test_disconnected_client_is_counted_as_abandoned(start_simulator):
    simulator = start_simulator(latency_s=0.3)
    with pytest.raises(TimeoutError):
        send(simulator, chat_body(), timeout_s=0.1)
    until(lambda: simulator.counters()["abandoned"])
    counted = simulator.counters()
    assert (counted["abandoned"], counted["statuses"], counted["completion_tokens"]) == (1, {}, 0)


def test_peak_concurrency_is_counted(start_simulator):
    simulator = start_simulator(latency_s=0.3)
    with ThreadPoolExecutor(max_workers=7) as pool:
        list(pool.map(lambda number: send(simulator, chat_body(f"{number}")), range(7)))
    assert simulator.counters()["most_at_once"] == 7


# The process


def test_api_key_is_not_in_process_arguments(start_simulator):
    simulator = start_simulator(api_key="sk-hidden-161")
    arguments = Path(f"/proc/{simulator._process.pid}/cmdline")
    if not arguments.exists():
        pytest.skip("this system does not show arguments in /proc")
    assert b"sk-hidden-161" not in arguments.read_bytes()


def test_simulator_stops_at_end_of_with_block():
    with Simulator() as simulator:
        place = address(simulator)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)


def test_simulator_stops_when_parent_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        simulator = Simulator()
        simulator.base_url = parent.stdout.readline().strip()
        parent.send_signal(signal.SIGKILL)
    until(lambda: is_closed(address(simulator)), timeout_s=10)


def is_closed(place: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(place) != 0


def test_simulator_start_failure_is_reported(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        simulator = Simulator(SimulatorOptions(port=taken.getsockname()[1]))
        with pytest.raises(BatchlineError, match="did not start"):
            simulator.start()
    assert "in use" in capfd.readouterr().err
