"""The attempts of a lane that wait for their next try, by the time at which they are due."""

from heapq import heapify, heappop, heappush

from batchline.upstream.batch_session import BatchSession, ChunkQueue
from batchline.upstream.pending_call import PendingCall


class RetryQueue:
    """A heap of attempts; of those due at one time the first that was put in comes first."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, PendingCall]] = []
        self._sequence = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def put(self, pending: PendingCall, due_at: float) -> None:
        """Let the attempt wait until `due`."""
        self._sequence += 1
        heappush(self._entries, (due_at, self._sequence, pending))

    def peek(self) -> tuple[float, PendingCall]:
        """The attempt that is due first, and when; it stays."""
        due_at, _, pending = self._entries[0]
        return due_at, pending

    def pop(self) -> PendingCall:
        """Take the attempt that is due first."""
        return heappop(self._entries)[2]

    def remove(self, owner: BatchSession | ChunkQueue) -> list[PendingCall]:
        """Take all attempts of a run or a feed."""
        removed = [pending for _, _, pending in self._entries if belongs_to(pending, owner)]
        if removed:
            self._entries = [entry for entry in self._entries if not belongs_to(entry[2], owner)]
            heapify(self._entries)
        return removed


def belongs_to(pending: PendingCall, owner: BatchSession | ChunkQueue) -> bool:
    """True if the attempt belongs to that run or feed."""
    return pending.session is owner or pending.queue is owner
