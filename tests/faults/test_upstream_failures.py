"""Upstreams that are away, slow, strange or unwilling: every request ends in one of the two files."""

import time
from collections.abc import Callable

import pytest
from helpers.batch_assertions import check_results, error_codes, errors_of, output_of, received
from helpers.polling import until
from helpers.record_edits import change_batch

from batchline.engine.lease import active_lease
from batchline.engine.pipeline import run_local
from batchline.models.errors import BatchPaused
from batchline.models.status import BatchStatus

BAD = (3, 28, 53, 78)
"""Few enough that all attempts at them in a row are not yet taken for an outage."""


def some_bad(order: str) -> Callable[[int], str]:
    """Prompts of which some make the simulator do that."""
    return lambda number: f"{number}: simulate:{order}" if number in BAD else f"Question {number}?"


# Away


@pytest.mark.parametrize(
    ("down_from_s", "max_attempts"),
    [
        pytest.param(0.0, 1, id="at the start, when nothing is sent"),
        pytest.param(0.5, 2, id="midway, when some are sent before it is known"),
    ],
)
def test_upstream_outage_costs_no_requests_or_attempts(
    down_from_s, max_attempts, start_simulator, make_services, create_batch
):
    simulator = start_simulator(latency_s=0.05, down_from_s=down_from_s, down_for_s=1.0)
    services = make_services(simulator.base_url, upstream={"max_attempts": max_attempts, "max_in_flight": 16})
    batch = create_batch(services, 300)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    assert (ended.completed, ended.failed) == (300, 0)
    check_results(services, ended, 300)
    assert simulator.counters()["repeated"] <= 16


def test_upstream_outage_pauses_batch_and_reports_it(start_simulator, make_services, create_batch, in_background):
    simulator = start_simulator(down_from_s=0, down_for_s=60)
    services = make_services(simulator.base_url)
    batch = create_batch(services, 100)
    in_background(services, batch)

    until(
        lambda: (
            (hold := active_lease(batch.id))
            and (hold.progress().paused or "").startswith("upstream default is down")
        )
    )

    assert services.records.get_batch(batch.id).status is BatchStatus.IN_PROGRESS
    assert services.records.get_batch(batch.id).failed == 0


# Strange


STRANGE = {
    "html": ("html", "invalid_response"),
    "a body that breaks off": ("cut_off", "connection_error"),
    "an answer that never comes": ("hanging", "timeout"),
    "500": ("server_error", "server_error"),
    "a redirect": ("status=302", "invalid_response"),
    "422": ("status=422", "invalid_request"),
}
"""One fault for each code that a request can fail with; tests/upstream has the others."""


@pytest.mark.parametrize(("order", "code"), STRANGE.values(), ids=STRANGE)
def test_request_without_valid_response_becomes_error_line(
    order, code, start_simulator, make_services, create_batch
):
    simulator = start_simulator(retry_after_s=0.05)
    services = make_services(simulator.base_url, upstream={"max_attempts": 2, "first_byte_timeout_s": 0.3})
    batch = create_batch(services, 100, prompt=some_bad(order))

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 100)
    assert error_codes(services, ended) == {code: len(BAD)}
    assert [line["custom_id"] for line in errors_of(services, ended)] == [f"request-{number}" for number in BAD]


def test_batch_without_valid_response_fails_with_error_lines(start_simulator, make_services, create_batch):
    simulator = start_simulator(server_error=1.0)
    services = make_services(simulator.base_url, upstream={"max_attempts": 2})
    batch = create_batch(services, 20)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.FAILED
    check_results(services, ended, 20)
    assert received(simulator) == 40
    assert [error.code for error in ended.errors or ()] == ["all_requests_failed"]


def test_hanging_upstream_expires_batch_at_window_end(start_simulator, make_services, create_batch):
    simulator = start_simulator(hanging=1.0)
    services = make_services(
        simulator.base_url, upstream={"max_attempts": 2, "first_byte_timeout_s": 0.2}, grace_s=0.2
    )
    batch = create_batch(services, 200)
    change_batch(services.records, batch.id, expires_at=int(time.time()) + 2)

    ended = run_local(services, batch.id)

    assert time.time() - ended.expires_at < 20
    assert ended.status is BatchStatus.EXPIRED
    check_results(services, ended, 200)
    assert set(error_codes(services, ended)) <= {"batch_expired", "timeout"}


# Large


@pytest.mark.system
def test_responses_of_ten_megabytes_are_stored_completely(start_simulator, make_services, chat_file, create_batch):
    tokens = 2_500_000
    simulator = start_simulator(answer_tokens=tokens)
    services = make_services(simulator.base_url)
    batch = create_batch(services, 6)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, 6)
    for line in output_of(services, ended):
        body = line["response"]["body"]
        assert len(body["choices"][0]["message"]["content"]) == 4 * body["usage"]["completion_tokens"] > 7_000_000


# Unwilling


def test_batch_paused_by_wrong_api_key_goes_on_with_the_right_one(start_simulator, make_services, create_batch):
    simulator = start_simulator(api_key="the-right-one")
    services = make_services(simulator.base_url, upstream={"api_key": "a-wrong-one"})
    batch = create_batch(services, 500)

    with pytest.raises(BatchPaused, match="check the upstream's api_key") as paused:
        run_local(services, batch.id)

    assert paused.value.code == "unauthorized"
    assert services.records.get_batch(batch.id).failed == 0
    refused = received(simulator)
    assert refused <= 64

    services.records.resume(batch.id)
    repaired = make_services(simulator.base_url, upstream={"api_key": "the-right-one"})
    ended = run_local(repaired, batch.id)

    assert (ended.status, ended.completed, ended.failed) == (BatchStatus.COMPLETED, 500, 0)
    check_results(repaired, ended, 500)
    assert received(simulator) == refused + 500


def test_temporary_rate_limiting_slows_batch_without_failures(start_simulator, make_services, create_batch):
    simulator = start_simulator(rate_limited=0.8, retry_after_s=0.02)
    services = make_services(simulator.base_url, upstream={"max_attempts": 100})
    batch = create_batch(services, 100)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.COMPLETED
    assert (ended.completed, ended.failed) == (100, 0)
    check_results(services, ended, 100)
    assert simulator.counters()["statuses"]["429"] > 100


def test_permanent_rate_limiting_lasts_until_the_window_ends(start_simulator, make_services, create_batch):
    simulator = start_simulator(rate_limited=1.0, retry_after_s=0.02)
    services = make_services(simulator.base_url, upstream={"max_attempts": 3}, grace_s=0.2)
    batch = create_batch(services, 50)
    change_batch(services.records, batch.id, expires_at=int(time.time()) + 3)

    ended = run_local(services, batch.id)

    assert ended.status is BatchStatus.EXPIRED
    check_results(services, ended, 50)
    assert set(error_codes(services, ended)) <= {"batch_expired", "rate_limited"}
    assert received(simulator) > 50


BUDGETS = {"requests": {"requests_per_minute": 3_000}, "tokens": {"tokens_per_minute": 150_000}}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_configured_rate_limit_prevents_upstream_429(budget, start_simulator, make_services, create_batch):
    simulator = start_simulator(**budget)
    services = make_services(simulator.base_url, upstream=budget)
    batch = create_batch(services, 100)
    began = time.monotonic()

    ended = run_local(services, batch.id)

    assert time.monotonic() - began > 0.5
    assert (ended.completed, ended.failed) == (100, 0)
    check_results(services, ended, 100)
    assert simulator.counters()["statuses"] == {"200": 100}
