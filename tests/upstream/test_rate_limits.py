"""Caps by the minute: no sliding minute is above them, and little of them is left unused."""

from itertools import accumulate

import pytest
from helpers.dispatcher_calls import NO_LIMITS, call_all, collect_results, make_bodies, make_calls
from helpers.scripted_server import error_reply, reply
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline.models.upstreams import Upstream
from batchline.models.usage import Usage
from batchline.upstream.rate_limits import PERIOD_S, RateLimits, SlidingWindowLimit

GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 90)), min_size=1, max_size=200)


def most_in_a_window(spent: list[tuple[float, float]], length: float = PERIOD_S) -> float:
    """The most that was spent in any window of that length."""
    return max(sum(units for at, units in spent if start <= at <= start + length) for start, _ in spent)


@given(st.integers(1, 300), GAPS)
@settings(max_examples=150, deadline=None)
def test_requests_in_any_window_stay_within_the_limit(most, gaps):
    cap, sent, now = SlidingWindowLimit(most, 0.0), [], 0.0
    for arrival in accumulate(gaps):
        now = max(now, arrival)
        while (wait_s := cap.wait_s(1, now)) > 0:
            now += wait_s
        cap.spend(1, now)
        sent.append((now, 1.0))

    assert most_in_a_window(sent) <= most


@given(
    st.integers(100, 5_000),
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 900), st.floats(0, 5)), min_size=1, max_size=120),
)
@settings(max_examples=150, deadline=None)
def test_tokens_in_any_window_stay_within_limit_and_corrections(most, requests):
    cap, spent, now, risen = SlidingWindowLimit(most, 0.0), [], 0.0, 0.0
    for estimate, used, pause_s in requests:
        while (wait_s := cap.wait_s(estimate, now)) > 0:
            now += wait_s
        entry = cap.spend(estimate, now)
        spent.append((now, float(used)))
        now += pause_s
        cap.correct(entry, used - estimate, now)
        risen = max(risen, used - estimate)

    largest = max(max(estimate, used) for estimate, used, _ in requests)
    assert most_in_a_window(spent) <= max(most + max(0.0, risen), largest)


@pytest.mark.parametrize("most", [60, 600, 5_000])
def test_limit_is_used_up_while_there_is_work(most):
    cap, now, sent = SlidingWindowLimit(most, 0.0), 0.0, 0
    while now < 600:
        wait_s = cap.wait_s(1, now)
        if wait_s > 0:
            now += wait_s
        else:
            cap.spend(1, now)
            sent += 1

    assert sent >= 0.97 * most * 10


def test_request_above_the_limit_is_sent_alone():
    cap = SlidingWindowLimit(100, 0.0)
    cap.spend(10, 0.0)

    wait_s = cap.wait_s(5_000, 0.0)

    assert 59 < wait_s < 62
    assert cap.wait_s(5_000, wait_s) == 0


def rates_of(**caps: int) -> RateLimits:
    return RateLimits(Upstream(base_url="http://127.0.0.1:1", **caps), 0.0)


def usage(total: int) -> Usage:
    return Usage(total // 2, total - total // 2, total, None, 0)


def test_token_estimate_adapts_to_reported_usage():
    rates, now = rates_of(tokens_per_minute=1_000_000), 0.0
    body = b'{"max_tokens": 4000, "messages": []}'
    first = rates.reserve(body, now)
    assert first.units > 4_000
    for _ in range(50):
        rates.reconcile(rates.reserve(body, now), usage(100), now)

    assert rates.reserve(body, now).units == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize(("refused", "kept"), [(True, 0.0), (False, 1.0)], ids=["refused", "failed otherwise"])
def test_rejected_request_costs_no_tokens_and_failed_its_estimate(refused, kept):
    rates = rates_of(tokens_per_minute=10_000)
    held = rates.reserve(b'{"max_tokens": 100}', 0.0)
    before = held.units

    rates.reconcile(held, None, 1.0, is_uncharged=refused)

    assert held.entry.units == pytest.approx(kept * before)


def test_rate_limits_are_inactive_without_settings():
    assert not rates_of()
    assert rates_of(requests_per_minute=1)
    assert rates_of(tokens_per_minute=1)


def spread_of(server) -> list[float]:
    return sorted(request.at for request in server.received)


def test_requests_are_spread_over_time(make_dispatcher, serve):
    server = serve(lambda _: reply())

    answers = call_all(make_dispatcher(server.base_url, requests_per_minute=600), make_bodies(25))

    times = spread_of(server)
    assert {(answer.code, answer.attempts) for answer in answers} == {(None, 1)}
    assert times[-1] - times[0] >= 1.3
    assert most_in_a_window([(at, 1.0) for at in times], 0.5) <= 10 + 5 + 1


def test_small_session_is_not_starved_by_retries_of_a_large_one(make_dispatcher, serve):
    """The large one's requests fail again and again, and there are always some that are due."""
    server = serve(lambda request: reply(after_s=0.005) if "small" in request.prompt else error_reply(500))
    dispatcher = make_dispatcher(server.base_url, max_in_flight=4, max_attempts=60)
    options = {"deadline": None, "options": NO_LIMITS, "grace_s": 0.0}
    with dispatcher.open_session("large", **options) as large, large.open_queue(0) as many:
        many.put(make_calls([{"model": "m", "user": f"large-{number}"} for number in range(500)]))
        many.end_input()
        while len(server.received) < 600:
            many.wait_for_results(0.05)
        began = len(server.received)
        with dispatcher.open_session("small", **options) as small, small.open_queue(0) as few:
            few.put(make_calls([{"model": "m", "user": f"small-{number}"} for number in range(40)]))
            few.end_input()
            answers = collect_results(few)

    assert {answer.code for answer in answers} == {None}
    assert len(server.received) - began <= 6 * 40


SHARES = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 100)), min_size=1, max_size=40)


@given(SHARES)
@settings(max_examples=150, deadline=None)
def test_changing_quota_is_never_exceeded(changes):
    """As sharing does: a share goes down no further than to what the last minute has spent."""
    cap, now, sent = SlidingWindowLimit(100, 0.0), 0.0, []
    cap.set_cap(0, 0.0)
    share = 0
    for length, wanted in changes:
        share = max(wanted, min(share, cap.spent_units(now)))
        cap.set_cap(share, now, pace=max(1, wanted))
        until = now + length
        while share and now < until:
            if (wait_s := cap.wait_s(1, now)) > 0:
                now += wait_s
            else:
                cap.spend(1, now)
                sent.append((now, share))
        now = max(now, until)
        assert cap.spent_units(now) <= share

    for at, held in sent:
        assert sum(at - PERIOD_S <= other <= at for other, _ in sent) <= held


def test_quota_handed_over_between_processes_adds_up_to_the_limit():
    """One has spent all of the cap; another comes and is to have half: neither waits for the other."""
    first, second, now = SlidingWindowLimit(600, 0.0), SlidingWindowLimit(600, 0.0), 0.0
    sent = {1: 0, 2: 0}
    second.set_cap(0, 0.0)

    def send(number: int, cap: SlidingWindowLimit) -> None:
        while cap.wait_s(1, now) <= 0:
            cap.spend(1, now)
            sent[number] += 1

    while now < 60:
        send(1, first)
        now += 0.05
    before = sent[1]
    while now < 120:
        held = max(300, first.spent_units(now))
        first.set_cap(held, now, pace=300)
        second.set_cap(600 - held, now, pace=300)
        send(1, first)
        send(2, second)
        now += 0.05

    assert sent[1] - before + sent[2] >= 0.95 * 600
    assert sent[2] >= 0.9 * 300


def test_zero_quota_sends_nothing_until_the_full_limit_returns():
    cap = SlidingWindowLimit(60, 0.0)
    cap.set_cap(0, 0.0)
    assert cap.wait_s(1, 0.0) > 1

    cap.set_cap(None, 1.0)
    assert cap.wait_s(1, 1.0) == 0


def test_request_above_the_quota_waits_in_proportion():
    cap = SlidingWindowLimit(1_000, 0.0)
    cap.set_cap(250, 0.0, pace=250)

    assert 3.9 * PERIOD_S < cap.wait_s(1_000, 0.0) < 4.1 * PERIOD_S
    cap.set_cap(1_000, 0.0, pace=1_000)
    assert cap.wait_s(1_000, 0.0) < 1.1 * PERIOD_S
