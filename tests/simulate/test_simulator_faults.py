"""The simulator's knobs: faults, limits, latencies, and that a seed decides all of it."""

import http.client
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import pytest
from helpers.polling import until
from helpers.simulator_client import Answer, chat_body, connected, send
from pydantic import ValidationError

from batchline.simulate import Simulator, SimulatorOptions
from batchline.simulate.fault_injection import FaultInjector, FixedWindowLimit, read_directive
from batchline.simulate.fault_kinds import FAULT_KINDS, SHARE_OPTIONS


def statuses(simulator: Simulator, count: int) -> list[int]:
    connection = connected(simulator)
    found = [send(simulator, chat_body(f"Question {number}"), on=connection).status for number in range(count)]
    connection.close()
    return found


def ask_at_once(simulator: Simulator, count: int) -> list[Answer]:
    with ThreadPoolExecutor(max_workers=count) as pool:
        return list(pool.map(lambda number: send(simulator, chat_body(f"{number}")), range(count)))


STATUSES = {"rate_limited": 429, "server_error": 500, "unavailable": 503, "html": 200, "error_object": 200}


@pytest.mark.parametrize(("fault", "status"), STATUSES.items(), ids=STATUSES)
def test_fault_with_response_has_its_status(fault, status, start_simulator):
    simulator = start_simulator(**{fault: 1.0})
    assert send(simulator, chat_body()).status == status
    assert (simulator.counters()["faults"], simulator.counters()["prompt_tokens"]) == ({fault: 1}, 0)


@pytest.mark.parametrize("fault", ["rate_limited", "server_error", "unavailable", "error_object"])
def test_error_fault_uses_openai_error_format(fault, plain_simulator):
    error = send(plain_simulator, chat_body(f"simulate:{fault}")).json["error"]
    assert error.keys() == {"message", "type", "param", "code"}


def test_html_fault_has_html_content_type(plain_simulator):
    answer = send(plain_simulator, chat_body("simulate:html"))
    assert answer.headers["content-type"] == "text/html"
    assert answer.body.startswith(b"<!doctype html>")


def test_separators_order_puts_raw_separators_into_response_text(plain_simulator):
    answer = send(plain_simulator, chat_body("simulate:separators"))
    text = answer.json["choices"][0]["message"]["content"]
    assert (answer.status, text[:7]) == (200, "\u2028\u2029\x85the ")
    assert "\u2028".encode() in answer.body


def test_truncated_fault_is_complete_http_with_partial_json(plain_simulator):
    answer = send(plain_simulator, chat_body("simulate:truncated"))
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.body)


CLOSED = (http.client.RemoteDisconnected, ConnectionResetError)
BROKEN = {"dropped": CLOSED, "cut_off": http.client.IncompleteRead, "hanging": TimeoutError}


@pytest.mark.parametrize(("fault", "error"), BROKEN.items(), ids=BROKEN)
def test_fault_without_response_breaks_connection_or_hangs(fault, error, plain_simulator):
    with pytest.raises(error):
        send(plain_simulator, chat_body(f"simulate:{fault}"), timeout_s=0.3)


def test_prompt_can_order_any_status(plain_simulator):
    assert send(plain_simulator, chat_body("please simulate:status=418 now")).status == 418


def test_prompt_can_order_every_fault():
    for name in FAULT_KINDS:
        for form in ("simulate:{}", "simulate:fault={}", "simulate:once={}"):
            directive = read_directive(f'{{"x": "{form.format(name)} now"}}'.encode())
            assert (directive.fault, directive.is_once) == (name, "once" in form), form


def test_fault_ordered_once_happens_to_the_first_of_equal_requests(plain_simulator):
    asked = [chat_body("simulate:once=server_error")] * 3 + [chat_body("2 simulate:once=server_error")]
    assert [send(plain_simulator, body).status for body in asked] == [500, 200, 200, 500]


def test_unknown_ordered_fault_is_refused_by_name(plain_simulator):
    answer = send(plain_simulator, chat_body("simulate:fault=nonsense"))
    assert answer.status == 400
    assert "'nonsense'" in answer.json["error"]["message"]


def test_faults_with_an_option_of_their_own_are_in_the_table():
    assert set(SHARE_OPTIONS) <= set(SimulatorOptions.model_fields)
    assert set(SHARE_OPTIONS) <= set(FAULT_KINDS)


def test_share_of_a_fault_means_the_same_as_its_own_option(start_simulator):
    by_option, by_kind = start_simulator(html=0.3), start_simulator(faults={"html": 0.3})
    for number in range(40):
        bodies = [send(simulator, chat_body(f"{number}")).body for simulator in (by_option, by_kind)]
        assert bodies[0] == bodies[1]
    assert by_option.counters()["faults"] == by_kind.counters()["faults"]
    assert by_kind.counters()["faults"]["html"] > 4


def test_shares_of_several_faults_add_up(start_simulator):
    simulator = start_simulator(faults={"empty_object": 0.4, "no_content": 0.2})
    found = statuses(simulator, 300)
    assert 35 <= found.count(204) <= 85
    assert 85 <= simulator.counters()["faults"]["empty_object"] <= 155


def test_fault_rates_apply_to_that_share_of_requests(start_simulator):
    found = statuses(start_simulator(server_error=0.2, rate_limited=0.1), 500)
    assert 75 <= found.count(500) <= 125
    assert 30 <= found.count(429) <= 70
    assert found.count(200) == 500 - found.count(500) - found.count(429)


def test_same_seed_gives_same_faults_and_responses_across_processes(start_simulator):
    knobs = {"seed": 7, "server_error": 0.3, "latency": "lognormal", "latency_s": 0.001}
    one, other = start_simulator(**knobs), start_simulator(**knobs)
    assert statuses(one, 60) == statuses(other, 60)
    assert send(one, chat_body("simulate:none")).body == send(other, chat_body("simulate:none")).body


def test_faults_depend_on_seed_but_not_on_request_order(start_simulator):
    one, same, other = (start_simulator(seed=seed, server_error=0.3) for seed in (1, 1, 2))
    forward = {number: send(one, chat_body(f"{number}")).status for number in range(40)}
    backward = {number: send(same, chat_body(f"{number}")).status for number in reversed(range(40))}
    assert forward == backward
    assert forward != {number: send(other, chat_body(f"{number}")).status for number in range(40)}


def test_repeated_request_gets_its_own_fault_draw(start_simulator):
    simulator = start_simulator(server_error=0.5)
    assert {send(simulator, chat_body()).status for _ in range(30)} == {200, 500}


def test_reset_repeats_the_same_faults(start_simulator):
    simulator = start_simulator(server_error=0.5)
    before = statuses(simulator, 40)
    simulator.reset()
    assert statuses(simulator, 40) == before


@pytest.mark.parametrize(
    ("form", "headers"),
    [("seconds", {"retry-after": "2.500"}), ("ms", {"retry-after-ms": "2500"}), ("none", {})],
)
def test_rate_limited_fault_sends_retry_after_in_each_form(form, headers, start_simulator):
    answer = send(start_simulator(rate_limited=1.0, retry_after=form, retry_after_s=2.5), chat_body())
    assert {name: value for name, value in answer.headers.items() if name.startswith("retry-after")} == headers


def test_rate_limited_fault_sends_retry_after_date_not_too_early(start_simulator):
    simulator = start_simulator(rate_limited=1.0, retry_after="date", retry_after_s=2.5)
    asked_at = time.time()
    told = parsedate_to_datetime(send(simulator, chat_body()).headers["retry-after"]).timestamp()
    assert asked_at + 2.5 <= told <= time.time() + 3.5


def test_requests_over_rate_limit_return_429_until_minute_ends(start_simulator):
    simulator = start_simulator(requests_per_minute=5)
    answers = [send(simulator, chat_body(f"{number}")) for number in range(8)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 3
    assert 50 < float(answers[-1].headers["retry-after"]) <= 60


def test_tokens_over_rate_limit_return_429(start_simulator):
    simulator = start_simulator(tokens_per_minute=200, answer_tokens=60)
    found = statuses(simulator, 10)
    counted = simulator.counters()
    assert found[0] == 200
    assert found[-1] == 429
    assert counted["prompt_tokens"] + counted["completion_tokens"] <= 200


def test_rate_limit_is_restored_after_a_minute(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("batchline.simulate.fault_injection.time.monotonic", lambda: now[0])
    budget = FixedWindowLimit(3)
    assert [budget.acquire(2), budget.acquire(2)] == [None, 60.0]
    now[0] += 60.0
    assert budget.acquire(2) is None


def test_request_larger_than_rate_limit_is_accepted_alone():
    budget = FixedWindowLimit(10)
    assert budget.acquire(50) is None
    assert budget.acquire(1) is not None


def test_requests_over_concurrency_limit_return_503(start_simulator):
    simulator = start_simulator(max_concurrent=3, latency_s=0.4)
    found = [answer.status for answer in ask_at_once(simulator, 8)]
    assert (found.count(200), found.count(503)) == (3, 5)
    assert simulator.counters()["most_at_once"] == 3


def test_request_counts_as_concurrent_until_last_byte(start_simulator):
    simulator = start_simulator(max_concurrent=1, latency_s=0.4, first_byte_share=0.0)
    found = [answer.status for answer in ask_at_once(simulator, 4)]
    assert found.count(503) == 3


def test_hanging_request_counts_as_concurrent_until_disconnect(start_simulator):
    simulator = start_simulator(max_concurrent=1)
    connection = connected(simulator)
    connection.request("POST", "/v1/chat/completions", json.dumps(chat_body("simulate:hanging")))
    until(lambda: send(simulator, chat_body()).status == 503)
    connection.close()
    until(lambda: send(simulator, chat_body()).status == 200)


def test_outage_refuses_connections_until_it_ends(start_simulator):
    simulator = start_simulator(down_from_s=0.5, down_for_s=0.7)

    def is_down() -> bool:
        try:
            return send(simulator, chat_body()).status != 200
        except OSError:
            return True

    until(is_down)
    until(lambda: not is_down())


def test_outage_closes_open_connections(start_simulator):
    simulator = start_simulator(down_from_s=0.3, latency_s=5.0)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        send(simulator, chat_body())


KEYS = {
    "bearer": ({"authorization": "Bearer right"}, 200),
    "Anthropic's header": ({"x-api-key": "right"}, 200),
    "another key": ({"authorization": "Bearer wrong"}, 401),
    "none": ({}, 401),
}


@pytest.mark.parametrize(("headers", "status"), KEYS.values(), ids=KEYS)
def test_only_valid_api_key_is_accepted(headers, status, start_simulator):
    assert send(start_simulator(api_key="right"), chat_body(), headers=headers).status == status


def test_fixed_latency_delays_response(start_simulator):
    began = time.monotonic()
    send(start_simulator(latency_s=0.3), chat_body())
    assert time.monotonic() - began >= 0.3


def test_first_byte_comes_after_its_share_of_latency(start_simulator):
    simulator = start_simulator(latency_s=1.0, first_byte_share=0.25)
    connection = connected(simulator)
    began = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(chat_body()))
    response = connection.getresponse()
    first_byte_s = time.monotonic() - began
    response.read()
    whole_s = time.monotonic() - began
    connection.close()
    assert 0.25 <= first_byte_s < whole_s - 0.25
    assert whole_s >= 1.0


def latencies(**knobs: object) -> list[float]:
    fate = FaultInjector(SimulatorOptions.model_validate({"latency_s": 0.5, **knobs}))
    return [fate.draw_latency_s(fate.rng_for(number, 1)) for number in range(5_000)]


def test_uniform_latency_ranges_to_twice_the_mean():
    found = latencies(latency="uniform")
    assert 0 <= min(found) < 0.01
    assert 0.99 < max(found) <= 1.0
    assert statistics.mean(found) == pytest.approx(0.5, rel=0.05)


def test_lognormal_latency_has_configured_median_and_sigma():
    found = sorted(latencies(latency="lognormal", latency_sigma=1.0))
    assert statistics.median(found) == pytest.approx(0.5, rel=0.05)
    assert found[4_205] / found[2_500] == pytest.approx(2.718, rel=0.1)  # one sigma above the median


WRONG = {
    "an unknown knob": {"speed": 1},
    "a share above one": {"html": 1.1},
    "a huge seed": {"seed": 2**63},
    "an unknown fault": {"faults": {"nonsense": 0.1}},
    "a fault's share above one": {"faults": {"html": 1.1}},
}


@pytest.mark.parametrize("knobs", WRONG.values(), ids=WRONG)
def test_invalid_options_are_rejected(knobs):
    with pytest.raises(ValidationError):
        SimulatorOptions.model_validate(knobs)
