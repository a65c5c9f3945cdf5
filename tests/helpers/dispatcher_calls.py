"""Calls put to a caller through its public door, and all of their answers."""

import json
import time
from collections.abc import Callable, Sequence

from batchline.models.options import BatchOptions
from batchline.steps.requests import build_calls
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.call_results import Call, CallResult
from batchline.upstream.chunk_queue import ChunkQueue
from batchline.upstream.dispatcher import Dispatcher
from batchline.upstream.session_progress import SessionProgress

TIMEOUT_S = 30.0


NO_LIMITS = BatchOptions(max_identical_failures=1_000_000)
"""Options of a batch that sends on however many requests fail in the same way."""


def make_calls(
    bodies: Sequence[dict], *, endpoint: str = "/v1/chat/completions", upstream: str = "default", first: int = 1
) -> list[Call]:
    """The calls of an input with those bodies, its first line numbered so."""
    lines = [
        json.dumps({"custom_id": f"call-{number}", "method": "POST", "url": endpoint, "body": body}).encode()
        for number, body in enumerate(bodies, first)
    ]
    return build_calls(
        list(enumerate(lines, first)), endpoint=endpoint, only_model=None, find_upstream=lambda _model: upstream
    )


def make_bodies(count: int) -> list[dict]:
    """Bodies that differ in their `user`, the number of each."""
    return [{"model": "m", "user": str(number)} for number in range(count)]


def collect_results(
    *feeds: ChunkQueue, watch: Callable[[SessionProgress], object] = lambda _: None, timeout_s: float = TIMEOUT_S
) -> list[CallResult]:
    """All answers of feeds that have ended, by line; fails where they never come."""
    answers: list[CallResult] = []
    give_up_at = time.monotonic() + timeout_s
    while not all(feed.is_done for feed in feeds):
        assert time.monotonic() < give_up_at, f"only {len(answers)} answers after {timeout_s:.0f} s"
        for feed in feeds:
            answers += feed.wait_for_results(0.02)
        watch(feeds[0].session.snapshot())
    return sorted(answers, key=lambda answer: answer.call.line)


def call_all(
    dispatcher: Dispatcher,
    bodies: Sequence[dict],
    *,
    deadline: float | None = None,
    batch_options: BatchOptions = NO_LIMITS,
    watch: Callable[[SessionProgress], object] = lambda _: None,
    timeout_s: float = TIMEOUT_S,
    **options: str,
) -> list[CallResult]:
    """The answers to those bodies, in their order, from a run of their own."""
    run = dispatcher.open_session("batch-1", deadline=deadline, grace_s=1.0, options=batch_options)
    with run, run.open_queue(0) as feed:
        feed.put(make_calls(bodies, **options))
        feed.end_input()
        return collect_results(feed, watch=watch, timeout_s=timeout_s)


def open_session(dispatcher: Dispatcher, *, grace_s: float = 5.0, **options: object) -> BatchSession:
    chosen = {"deadline": None, "options": NO_LIMITS, **options}
    return dispatcher.open_session("batch-1", grace_s=grace_s, **chosen)
