"""A limit on requests at once that is allotted from outside, beside its own adapting."""

import asyncio

from helpers.dispatcher_calls import call_all, make_bodies, make_calls, open_session
from helpers.polling import until
from helpers.scripted_server import reply

from batchline.upstream.adaptive_limit import AdaptiveLimit


def test_limit_is_the_smaller_of_cap_and_adapted_value():
    limit = AdaptiveLimit(floor=1, ceiling=100)
    limit.set_cap(40)
    assert limit.value == 40
    limit.on_push_back(10.0)
    assert limit.value == 38

    limit.set_cap(10)
    assert limit.value == 10
    limit.set_cap(None)
    assert limit.value == 38


def test_reduced_limit_recovers_up_to_the_cap():
    limit = AdaptiveLimit(floor=1, ceiling=20)
    limit.set_cap(10)
    limit.on_push_back(10.0)
    while limit.is_reduced:
        limit.on_success()

    assert limit.value == 10
    assert limit.demand == 20


def test_requests_in_flight_stay_within_the_cap(make_dispatcher, gated, gate):
    dispatcher = make_dispatcher(gated.base_url, max_in_flight=8)
    lane = dispatcher._pools["default"]

    def allot(most: int) -> None:
        lane.limit.set_cap(most)
        lane.wake_workers(lane.limit.value)

    dispatcher._loop.call_soon_threadsafe(allot, 0)
    with open_session(dispatcher) as run, run.open_queue(0) as feed:
        feed.put(make_calls(make_bodies(20)))
        until(lane.scheduler.has_pending)
        assert gated.received == []
        for most in (3, 1, 5):
            dispatcher._loop.call_soon_threadsafe(allot, most)
            until(lambda most=most: len(gated.received) >= most)
        gate.set()
        until(lambda: len(gated.received) == 20)
        assert gated.most_at_once == 5


def test_cap_set_while_pool_closes_wakes_no_worker(make_dispatcher, serve):
    dispatcher = make_dispatcher(serve(lambda _: reply()).base_url, max_in_flight=4)
    call_all(dispatcher, make_bodies(4))
    lane = dispatcher._pools["default"]

    async def close_and_allot() -> None:
        closing = asyncio.ensure_future(lane.close())
        await asyncio.sleep(0)
        lane.wake_workers(4)
        await closing

    asyncio.run_coroutine_threadsafe(close_and_allot(), dispatcher._loop).result(10)
