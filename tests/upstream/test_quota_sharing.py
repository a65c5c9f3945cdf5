"""Several callers of one upstream that share its caps by a ledger; leases are of a second or so."""

import logging
import threading
import time
from contextlib import ExitStack

import pytest
from helpers.dispatcher_calls import collect_results, make_bodies, make_calls, open_session
from helpers.memory_quota_store import MemoryQuotaStore
from helpers.polling import until
from helpers.scripted_server import reply

from batchline.upstream.dispatcher import Dispatcher
from batchline.upstream.quota import upstream_quota
from batchline.upstream.quota.slot_leases import SlotLeases
from batchline.upstream.quota.upstream_quota import QuotaTiming
from batchline.upstream.rate_limits import RateLimits

QUICK = QuotaTiming(poll_s=0.05, max_poll_s=0.1, idle_s=0.3, lease_s=1.5, expiry_s=1.0, start_timeout_s=0.5)
PERIOD_S = 2.0


@pytest.fixture
def quota_store() -> MemoryQuotaStore:
    return MemoryQuotaStore()


@pytest.fixture
def share_quota(make_dispatcher, quota_store):
    """Make callers that share; each stands for a process."""

    def make(
        base_url: str, *, timing: QuotaTiming = QUICK, period_s: float = PERIOD_S, **options: object
    ) -> Dispatcher:
        dispatcher = make_dispatcher(base_url, **options)
        lane = dispatcher._pools["default"]
        lane.scheduler.rate_limits = RateLimits(lane.upstream, lane._loop.time(), period_s=period_s)
        dispatcher.share_quota(lambda: quota_store, timing=timing)
        return dispatcher

    return make


def limit_of(dispatcher: Dispatcher) -> int:
    return dispatcher._pools["default"].limit.value


def all_answers(callers: list[Dispatcher], requests: int) -> int:
    """Have each send so many requests at the same time; how many succeeded."""
    with ExitStack() as stack:
        feeds = [stack.enter_context(stack.enter_context(open_session(each)).open_queue(0)) for each in callers]
        for feed in feeds:
            feed.put(make_calls(make_bodies(requests)))
            feed.end_input()
        return sum(answer.code is None for answer in collect_results(*feeds, timeout_s=90))


@pytest.mark.parametrize(("cap", "processes"), [(9, 3), (2, 3), (1, 2)])
def test_requests_in_flight_of_all_processes_stay_within_the_limit(
    share_quota, serve, quota_store, cap, processes
):
    server = serve(lambda _: reply(after_s=0.02))
    callers = [share_quota(server.base_url, max_in_flight=cap) for _ in range(processes)]

    assert all_answers(callers, 60) == 60 * processes
    assert server.most_at_once == cap


def test_requests_of_all_processes_in_any_window_stay_within_the_limit(share_quota, serve):
    server = serve(lambda _: reply())
    callers = [share_quota(server.base_url, requests_per_minute=60) for _ in range(3)]

    assert all_answers(callers, 70) == 210
    times = sorted(request.at for request in server.received)
    assert max(sum(at <= other < at + 0.9 * PERIOD_S for other in times) for at in times) <= 60


def test_second_process_gets_half_of_the_limit(share_quota, gated, quota_store):
    first = share_quota(gated.base_url, max_in_flight=16)
    with open_session(first) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(100)))
        until(lambda: limit_of(first) == 16 and quota_store.taken("in-flight") == 16)
        second = share_quota(gated.base_url, max_in_flight=16)
        with open_session(second) as other, other.open_queue(0) as more:
            more.put(make_calls(make_bodies(100)))
            until(lambda: limit_of(first) == 8)
            assert quota_store.taken("in-flight") == 16, "what is under way is still held"
            assert limit_of(second) == 0


def test_idle_process_releases_its_quota_and_acquires_it_again(share_quota, serve, quota_store):
    server = serve(lambda _: reply())
    dispatcher = share_quota(server.base_url)
    assert all_answers([dispatcher], 10) == 10
    until(lambda: quota_store.taken("in-flight") == quota_store.taken("processes") == 0)
    calls = quota_store.calls
    time.sleep(5 * QUICK.max_poll_s)
    assert quota_store.calls == calls, "nothing is asked without work"

    assert all_answers([dispatcher], 10) == 10


def test_spent_quota_counts_after_the_process_ends(share_quota, serve, quota_store):
    server = serve(lambda _: reply())
    first = share_quota(server.base_url, requests_per_minute=1_280, period_s=60.0)
    assert all_answers([first], 40) == 40
    first.close()

    assert quota_store.taken("in-flight") == quota_store.taken("processes") == 0
    assert 40 <= quota_store.taken("requests-per-minute") <= 60
    until(lambda: quota_store.taken("requests-per-minute") == 0)


def test_leases_are_renewed_and_expire_without_renewal(share_quota, gated, quota_store):
    dispatcher = share_quota(gated.base_url, max_in_flight=8)
    with open_session(dispatcher) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(20)))
        until(lambda: quota_store.taken("in-flight") == 8)
        name = next(name for name in quota_store.limits if name.endswith("in-flight"))
        assert quota_store.acquire(name, 1, QUICK.lease_s) is None
        time.sleep(1.5 * QUICK.lease_s)
        assert quota_store.taken("in-flight") == 8
        quota_store.fails = True
        until(lambda: quota_store.taken("in-flight") == 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_leases_lost_by_the_store_are_replaced_and_released_once(share_quota, serve, quota_store, processes):
    server = serve(lambda _: reply(after_s=0.02))
    callers = [share_quota(server.base_url, max_in_flight=8) for _ in range(processes)]
    with ExitStack() as stack:
        for each in callers:
            feed = stack.enter_context(stack.enter_context(open_session(each)).open_queue(0))
            feed.put(make_calls(make_bodies(5_000)))
        until(lambda: sum(limit_of(each) for each in callers) == 8)
        quota_store.forget_leases()
        time.sleep(QUICK.lease_s)
        assert quota_store.taken("in-flight") == 8
    for each in callers:
        each.close()

    assert quota_store.taken("in-flight") == quota_store.taken("processes") == 0
    assert server.most_at_once <= 8


def test_store_outage_keeps_the_acquired_quota(share_quota, serve, quota_store, caplog):
    server = serve(lambda _: reply(after_s=0.02))
    callers = [share_quota(server.base_url, max_in_flight=8) for _ in range(2)]
    with ExitStack() as stack:
        for each in callers:
            feed = stack.enter_context(stack.enter_context(open_session(each)).open_queue(0))
            feed.put(make_calls(make_bodies(5_000)))
        until(lambda: [limit_of(each) for each in callers] == [4, 4])
        quota_store.set("in-flight", limit=6)
        until(lambda: [limit_of(each) for each in callers] == [3, 3])
        with caplog.at_level(logging.WARNING):
            quota_store.fails = True
            time.sleep(1.2 * QUICK.lease_s)
            assert [limit_of(each) for each in callers] == [3, 3]
        assert caplog.text.count("cannot be shared at the moment") == 2
        quota_store.fails = False
        until(lambda: quota_store.taken("in-flight") == 6)


def test_store_that_never_answers_does_not_block_requests(share_quota, serve, quota_store):
    quota_store.fails = True
    server = serve(lambda _: reply())

    assert all_answers([share_quota(server.base_url)], 10) == 10


def test_error_in_quota_sharing_does_not_stop_the_batch(make_dispatcher, serve, caplog):
    server = serve(lambda _: reply())
    dispatcher = make_dispatcher(server.base_url)

    def broken() -> MemoryQuotaStore:
        raise RuntimeError("no such thing")

    dispatcher.share_quota(broken, timing=QUICK)

    assert all_answers([dispatcher], 10) == 10
    assert "quota sharing does not work" in caplog.text


def test_store_that_cannot_be_opened_is_retried(make_dispatcher, gated, quota_store, monkeypatch):
    monkeypatch.setattr("batchline.upstream.quota.cap_sharing.RETRY_S", 0.05)
    dispatcher = make_dispatcher(gated.base_url, max_in_flight=8)
    opened = [False, False, True]

    def at_the_third_try() -> MemoryQuotaStore:
        if not opened.pop(0):
            raise RuntimeError("not yet")
        return quota_store

    dispatcher.share_quota(at_the_third_try, timing=QUICK)
    with open_session(dispatcher) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(20)))
        until(lambda: quota_store.taken("in-flight") == 8)


def test_quota_sharing_ends_if_its_store_opens_after_the_dispatcher_closed(
    make_dispatcher, serve, quota_store, monkeypatch, caplog
):
    monkeypatch.setattr("batchline.upstream.quota.cap_sharing.CLOSE_TIMEOUT_S", 0.05)
    closed, opened = threading.Event(), threading.Event()

    def open_slowly() -> MemoryQuotaStore:
        opened.set()
        assert closed.wait(30)
        return quota_store

    dispatcher = make_dispatcher(serve(lambda _: reply()).base_url)
    dispatcher.share_quota(open_slowly, timing=QUICK)
    assert opened.wait(30)
    sharing = next(thread for thread in threading.enumerate() if thread.name == "quota coordinator")
    dispatcher.close()
    closed.set()
    sharing.join(30)

    assert not sharing.is_alive()
    assert "quota sharing does not work" not in caplog.text


FAULTS = {"a loop that is busy": "stalls", "a fault of the program": "broken"}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_quota_sharing_continues_after_a_stall_or_an_error(fault, share_quota, serve, quota_store, monkeypatch):
    monkeypatch.setattr("batchline.upstream.quota.cap_sharing.LOOP_TIMEOUT_S", 0.2)
    server = serve(lambda _: reply(after_s=0.02))
    callers = [share_quota(server.base_url, max_in_flight=8) for _ in range(2)]
    with ExitStack() as stack:
        for each in callers:
            feed = stack.enter_context(stack.enter_context(open_session(each)).open_queue(0))
            feed.put(make_calls(make_bodies(20_000)))
        until(lambda: [limit_of(each) for each in callers] == [4, 4])
        if fault == "stalls":
            callers[0]._loop.call_soon_threadsafe(time.sleep, 1.0)
            time.sleep(1.2)
        else:
            with monkeypatch.context() as broken:
                broken.setattr(quota_store, "read_limits", lambda _names: 1 / 0)
                time.sleep(0.5)
        for _ in range(20):
            assert sum(limit_of(each) for each in callers) <= 8
            time.sleep(0.05)
        quota_store.set("in-flight", limit=6)
        until(lambda: [limit_of(each) for each in callers] == [3, 3])
    assert server.most_at_once <= 8


@pytest.mark.parametrize("renewed", [False, True])
def test_slots_with_lost_lease_are_released(quota_store, renewed):
    """Prefect takes back an unknown lease and says nothing of it, and its slots stay taken."""
    quota_store.create_limit("presence", 5)
    quota_store.create_limit("cap", 5)
    presence, slots = SlotLeases("presence", quota_store, 60.0), SlotLeases("cap", quota_store, 60.0)
    presence.acquire(1)
    slots.acquire(3)
    slots.acquire(2)
    quota_store.forget_leases()
    if renewed:
        presence.store_started_at()
        presence.renew(free_slots=4)

    slots.mark_for_release(5)
    slots.release_marked(presence.store_started_at())
    assert quota_store.taken("cap") == 0


def test_expiring_slots_with_lost_lease_are_released(quota_store):
    """A lease that Prefect has forgotten never ends, so its slots would stay taken for good."""
    quota_store.create_limit("cap", 8)
    slots = SlotLeases("cap", quota_store, 60.0)
    slots.acquire(6)
    slots.acquire(2)
    quota_store.forget_leases()

    slots.release_unused(used=6, expiry_s=60.0, store_started_at=float("inf"))

    assert quota_store.taken("cap") == 0


def test_working_process_reports_that_it_is_alive(share_quota, serve, quota_store, monkeypatch):
    monkeypatch.setattr(upstream_quota, "ALIVE_INTERVAL_S", 0.05)
    dispatcher = share_quota(serve(lambda _: reply(after_s=0.01)).base_url, max_in_flight=4)

    assert all_answers([dispatcher], 200) == 200

    assert {name.rpartition("-")[2] for name in quota_store.reported} == {"processes"}


def test_rate_limit_set_to_0_stops_requests_until_raised(share_quota, serve, quota_store):
    server = serve(lambda _: reply(after_s=0.01))
    dispatcher = share_quota(server.base_url, requests_per_minute=200)
    with open_session(dispatcher) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(5_000)))
        until(lambda: len(server.received) > 20)
        quota_store.set("requests-per-minute", limit=0)
        until(lambda: dispatcher._pools["default"].scheduler.rate_limits.requests._limit == 0)
        sent = len(server.received)
        time.sleep(PERIOD_S)
        assert len(server.received) <= sent + 1
        quota_store.set("requests-per-minute", limit=200)
        until(lambda: len(server.received) > sent + 20)


def test_limit_changed_by_user_applies_and_0_pauses_with_a_reason(share_quota, serve, quota_store, monkeypatch):
    monkeypatch.setattr("batchline.upstream.quota.upstream_quota.REPORT_AFTER_S", 0.1)
    server = serve(lambda _: reply(after_s=0.02))
    dispatcher = share_quota(server.base_url, max_in_flight=8)
    with open_session(dispatcher) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(5_000)))
        until(lambda: limit_of(dispatcher) == 8)
        quota_store.set("in-flight", limit=0)
        until(lambda: run.snapshot().paused is not None)
        assert run.snapshot().paused == (
            "upstream default waits: limit default-in-flight is 0; to continue: set default-in-flight to None"
        )
        until(lambda: run.snapshot().in_flight == 0)
        quota_store.set("in-flight", limit=3)
        until(lambda: limit_of(dispatcher) == 3)
        until(lambda: run.snapshot().paused is None)
        quota_store.set("in-flight", limit=100)
        until(lambda: limit_of(dispatcher) == 8)


def test_limit_below_the_settings_is_logged_with_advice(share_quota, serve, quota_store, caplog):
    quota_store.create_limit("default-in-flight", 2)
    server = serve(lambda _: reply(after_s=0.01))

    assert all_answers([share_quota(server.base_url, max_in_flight=8)], 20) == 20
    assert server.most_at_once == 2
    assert caplog.text.count("To raise it: set default-in-flight to 8") == 1


def test_inactive_limit_is_ignored(share_quota, gated, quota_store):
    dispatcher = share_quota(gated.base_url, max_in_flight=8)
    with open_session(dispatcher) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(20)))
        until(lambda: limit_of(dispatcher) == 8)
        quota_store.set("in-flight", limit=2, in_force=False)
        time.sleep(5 * QUICK.max_poll_s)
        assert limit_of(dispatcher) == 8


def test_deleted_limit_is_recreated_and_acquired_again(share_quota, gated, quota_store):
    dispatcher = share_quota(gated.base_url, max_in_flight=8)
    with open_session(dispatcher) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(20)))
        until(lambda: limit_of(dispatcher) == 8)
        quota_store.limits.clear()
        until(lambda: quota_store.taken("in-flight") == 8 and limit_of(dispatcher) == 8)


def test_process_with_low_demand_leaves_quota_to_the_other(share_quota, serve, quota_store):
    server = serve(lambda _: reply(after_s=0.5))
    few, many = (share_quota(server.base_url, max_in_flight=16) for _ in range(2))
    with (
        open_session(few) as run,
        run.open_queue(0) as feed,
        open_session(many) as other,
        other.open_queue(0) as more,
    ):
        feed.put(make_calls(make_bodies(2)))
        more.put(make_calls(make_bodies(400)))
        until(lambda: limit_of(many) >= 13)
