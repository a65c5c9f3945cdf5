"""One batch at the caller: its feeds, its counters, and why it was stopped."""

import asyncio
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import msgspec

from batchline.models.failures import UNANSWERED, ErrorCode
from batchline.upstream.answers import Answer, Call
from batchline.upstream.permit import Permit
from batchline.upstream.progress import RunProgress
from batchline.upstream.tally import Tally

if TYPE_CHECKING:
    from batchline.upstream.lane import Lane

WAKE_ANSWERS = 256
"""Answers that wake a chunk's thread."""

PENDING_CALLS = 512
PENDING_BYTES = 2**20
LARGE_BYTES = PENDING_BYTES // PENDING_CALLS
"""A body above which it is the bytes that bound what is pending, and not the number."""

UNREAD_BYTES = 16 * 2**20

DEADLINE_CHECK_S = 5.0  # a longer timer would miss the machine's sleep, and a clock that is set


class Stop(msgspec.Struct, frozen=True):
    """Why a run ends early: the code of what is unsettled, or None to leave it for another run."""

    code: ErrorCode | None
    message: str


class Run:
    """One batch in this process. Made by `Caller.open_run`; used from any thread."""

    def __init__(
        self,
        batch_id: str,
        lanes: dict[str, "Lane"],
        loop: asyncio.AbstractEventLoop,
        *,
        deadline: float | None,
        refusals_to_stop: int,
        grace_s: float,
        requests: int,
        tally: Tally,
        on_close: Callable[["Run"], None],
    ) -> None:
        self.batch_id = batch_id
        self.tally = tally
        self.lanes = lanes
        self.loop = loop
        self.deadline = deadline
        self.grace_s = grace_s
        self.stopped: Stop | None = None
        self.permit = Permit()
        self.feeds: list[Feed] = []
        self.completed = self.failed = self.in_flight = self.attempts = self.retried = 0
        self.prompt_tokens = self.completion_tokens = self.total_tokens = 0
        self._refusals_to_stop = min(refusals_to_stop, requests) if requests else refusals_to_stop
        self.refused_in_a_row = 0
        self.succeeded_elsewhere = False
        """Whether another process that sends for the batch has been answered."""
        self._on_close = on_close
        self._lock = threading.Lock()
        self._deadline_timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_feed(self, order: int) -> "Feed":
        """A stream of calls; of a run's feeds the one of lowest order is served first."""
        feed = Feed(self, order)
        self.loop.call_soon_threadsafe(insort, self.feeds, feed)
        return feed

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped so that another run goes on with what is unsettled."""
        return self.stopped is not None and self.stopped.code is None

    def renew(self, valid_for_s: float) -> None:
        """Allow sending for that long from now; a run that is never renewed may always send."""
        self.permit.renew(valid_for_s)

    @property
    def valid_until(self) -> float:
        """Monotonic time until which requests may be sent."""
        return self.permit.until

    def resume(self, feed: int) -> None:
        """End the feed's suspension of the run, if there is one."""
        if self.permit.resume(feed) and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._offer)

    def resume_later(self, feed: int, after_s: float) -> None:
        """End the feed's suspension after that time, or when the feed, opened again, resumes."""
        if self.permit.hand_over(feed) and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.call_later, after_s, self._end_handed_over, feed)

    def stop(self, stop: Stop) -> None:
        """End the run early; the first stop counts. Requests under way get the grace."""
        with self._lock:
            if self.stopped is not None:
                return
            self.stopped = stop
        self.loop.call_soon_threadsafe(self._stop)

    def close(self) -> None:
        """Take leave of the caller; what is still under way is dropped."""
        if self.loop.is_closed():
            return
        self.stop(Stop(code=None, message="the run is over"))
        self.loop.call_soon_threadsafe(self._close)

    def snapshot(self) -> RunProgress:
        """How far the run has come, now."""
        lanes = list(self.lanes.values())
        return RunProgress(
            completed=self.completed,
            failed=self.failed,
            in_flight=self.in_flight,
            attempts=self.attempts,
            retried=self.retried,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.total_tokens,
            limit=sum(lane.limit.value for lane in lanes),
            ceiling=sum(lane.limit.ceiling for lane in lanes),
            paused=self.permit.reason() or next((why for lane in lanes if (why := lane.paused())), None),
        )

    # What follows runs on the caller's loop.

    def watch_deadline(self) -> None:
        """Stop the run as expired when its time comes."""
        if self.deadline is not None:
            left = max(0.0, self.deadline - time.time())
            self._deadline_timer = self.loop.call_later(min(left, DEADLINE_CHECK_S), self._at_deadline)

    def _at_deadline(self) -> None:
        if self.deadline is not None and time.time() < self.deadline:
            self.watch_deadline()
            return
        self.stop(Stop(ErrorCode.BATCH_EXPIRED, "the completion window closed before this request was settled"))

    def _end_handed_over(self, feed: int) -> None:
        if self.permit.end_handed_over(feed):
            self._offer()

    def _offer(self) -> None:
        for lane in self.lanes.values():
            lane.offered(lane.limit.value)

    def _stop(self) -> None:
        for feed in self.feeds:
            feed.stop_pending()
        for lane in self.lanes.values():
            lane.drop_retries(self)
        self.loop.call_later(self.grace_s, self.abort)
        for feed in self.feeds:
            feed.wake()

    def abort(self) -> None:
        """Give up what is under way."""
        for lane in self.lanes.values():
            lane.abort(self)

    def _close(self) -> None:
        self.abort()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._on_close(self)

    def has_pending(self, lane: str) -> bool:
        """Whether calls wait that were never sent on that lane."""
        return any(feed.pending[lane] for feed in self.feeds)

    def count(self, answer: Answer) -> None:
        """Count a settled call."""
        self.tally.count(answer)
        if answer.code is not None:
            self.failed += answer.code not in UNANSWERED
            return
        self.completed += 1
        if answer.usage is not None:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.completion_tokens += answer.usage.completion_tokens
            self.total_tokens += answer.usage.total_tokens

    def refused(self, upstream: str, status_code: int) -> None:
        """Note a 401 or 403; stop when the upstream refuses everything."""
        self.refused_in_a_row += 1
        unanswered = self.completed == 0 and not self.succeeded_elsewhere
        if unanswered and self.refused_in_a_row >= self._refusals_to_stop:
            self.stop(
                Stop(
                    ErrorCode.BATCH_FAILED,
                    f"upstream {upstream} refuses every request: {status_code} {self.refused_in_a_row} times in a "
                    "row; check its API key",
                )
            )

    def not_refused(self) -> None:
        """Note an answer that shows the key is accepted."""
        self.refused_in_a_row = 0


class Feed:
    """One chunk's calls on their way out and its answers on their way back; used by one thread."""

    def __init__(self, run: Run, order: int) -> None:
        self.order = order
        self.run = run
        self.pending: dict[str, deque[Call]] = {name: deque() for name in run.lanes}
        self._answers: deque[Answer] = deque()
        self._event = threading.Event()
        self._ended = False
        self._closed = False
        self._withdrawn = False
        self._choked = False
        # Each of these counters has one writer: the chunk's thread for the first three, the loop for the rest.
        self._put = self._put_bytes = self._read_bytes = 0
        self._sent = self._sent_bytes = self._settled = self._answer_bytes = 0

    def __lt__(self, other: "Feed") -> bool:
        return self.order < other.order

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, calls: Sequence[Call]) -> None:
        """Hand over calls; never blocks."""
        if not calls:
            return
        now = time.perf_counter()
        size = 0
        for call in calls:
            call.read_at = now
            size += len(call.body)
        self._put += len(calls)
        self._put_bytes += size
        self.run.loop.call_soon_threadsafe(self._accept, calls)

    def end(self) -> None:
        """Say that nothing more comes."""
        self._ended = True

    def withdraw(self) -> None:
        """Send nothing more; requests in flight can still be answered, and the feed is drained after them."""
        self._ended = self._withdrawn = True
        self.run.loop.call_soon_threadsafe(self._withdraw)

    def close(self) -> None:
        """Drop what is still pending or under way; its answers are not kept."""
        if not self._closed:
            self._closed = True
            self.run.loop.call_soon_threadsafe(self._leave)

    @property
    def hungry(self) -> bool:
        """Whether more calls are wanted."""
        if self._ended or self.run.interrupted:
            return False
        return self._put - self._sent < PENDING_CALLS and self._put_bytes - self._sent_bytes < PENDING_BYTES

    @property
    def drained(self) -> bool:
        """Whether nothing is left: all is settled and read, or an interrupted run has given up on the rest."""
        over = (self._ended or self.run.interrupted) and self._settled >= self._put
        return over and not self._answers  # in this order: an answer is appended before it is counted

    def wait(self, timeout_s: float) -> list[Answer]:
        """The answers so far; returns when there are many, more calls are wanted, all is done, or time is up."""
        if len(self._answers) < WAKE_ANSWERS and not self.hungry and not self.drained:
            self._event.wait(timeout_s)
        self._event.clear()
        answers = [self._answers.popleft() for _ in range(len(self._answers))]
        self._read_bytes += sum(len(answer.body) for answer in answers if answer.body)
        if self._choked:
            self.run.loop.call_soon_threadsafe(self._unchoke)
        return answers

    # What follows runs on the caller's loop.

    def _accept(self, calls: Sequence[Call]) -> None:
        stopped = self.run.stopped
        if stopped is not None or self._closed or self._withdrawn:
            for call in calls:
                self._sent += 1
                self._sent_bytes += len(call.body)
                self.settle_unsent(call)
            self.wake()
            return
        for call in calls:
            self.pending[call.upstream].append(call)
        for name, lane in self.run.lanes.items():
            if self.pending[name]:
                lane.offered(len(self.pending[name]))

    def next_call(self, lane: str) -> Call | None:
        """The call that goes first on that lane, taken; none while too many answers lie unread."""
        pending = self.pending[lane]
        if not pending:
            return None
        if self.run.permit.is_suspended:
            return None
        if self._answer_bytes - self._read_bytes > UNREAD_BYTES:
            self._choked = True
            return None
        call = pending.popleft()
        self._sent += 1
        size = len(call.body)
        self._sent_bytes += size
        left = self._put - self._sent
        if (left == PENDING_CALLS - 1 or not pending or size > LARGE_BYTES) and self.hungry:
            self._event.set()
        return call

    def _unchoke(self) -> None:
        self._choked = False
        for lane in self.run.lanes.values():
            lane.offered(1)

    def settle(self, answer: Answer) -> None:
        """Hand an answer back.

        It does not count after the feed was closed. Once sending has stopped, a failure that another attempt may
        mend is left to the next run.
        """
        if self._closed or ((self._withdrawn or self.run.interrupted) and answer.may_be_mended):
            self._settled += 1
            return
        self.run.count(answer)
        if answer.body:
            self._answer_bytes += len(answer.body)
        self._answers.append(answer)
        self._settled += 1
        if len(self._answers) == WAKE_ANSWERS or (self._ended and self._settled >= self._put):
            self._event.set()

    def settle_unsent(self, call: Call, attempts: int = 0, retries: tuple[ErrorCode, ...] = ()) -> None:
        """Settle a call that a stop keeps from being sent (again)."""
        stopped = self.run.stopped
        if stopped is None or stopped.code is None or self._closed:
            self._settled += 1
            return
        self.settle(
            Answer(call=call, code=stopped.code, message=stopped.message, attempts=attempts, retries=retries)
        )

    def stop_pending(self) -> None:
        """Settle everything that waits."""
        for pending in self.pending.values():
            while pending:
                call = pending.popleft()
                self._sent += 1
                self._sent_bytes += len(call.body)
                self.settle_unsent(call)

    def wake(self) -> None:
        """Let the chunk's thread look."""
        self._event.set()

    def _withdraw(self) -> None:
        self.stop_pending()
        for lane in self.run.lanes.values():
            lane.drop_retries(self)
        self.wake()

    def _leave(self) -> None:
        self.stop_pending()
        for lane in self.run.lanes.values():
            # A retried chunk sends these lines again; their answers would be paid for and thrown away.
            lane.drop_retries(self)
            lane.abort(self)
        if self in self.run.feeds:
            self.run.feeds.remove(self)

    @property
    def is_closed(self) -> bool:
        """True if nothing more of it may be sent."""
        return self._closed or self._withdrawn
