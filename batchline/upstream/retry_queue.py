"""The calls of a pool that wait for their next attempt, ordered by due time."""

from heapq import heapify, heappop, heappush

from batchline.upstream.pending_call import PendingCall


class RetryQueue:
    """A heap of calls; those that are due at the same time are first in, first out."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, PendingCall]] = []
        self._sequence = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def put(self, pending: PendingCall, due_at: float) -> None:
        """Add a call that is due at that loop time."""
        # Also a tie-breaker: calls cannot be compared.
        self._sequence += 1
        heappush(self._entries, (due_at, self._sequence, pending))

    def peek(self) -> tuple[float, PendingCall]:
        """Return the due time and the call that is due first, without removing it."""
        due_at, _, pending = self._entries[0]
        return due_at, pending

    def pop(self) -> PendingCall:
        """Remove and return the call that is due first."""
        return heappop(self._entries)[2]

    def remove(self, owner: object) -> list[PendingCall]:
        """Remove and return all calls of a session or a chunk queue."""
        removed = [pending for _, _, pending in self._entries if belongs_to(pending, owner)]
        if removed:
            self._entries = [entry for entry in self._entries if not belongs_to(entry[2], owner)]
            heapify(self._entries)
        return removed


def belongs_to(pending: PendingCall, owner: object) -> bool:
    """Return True if the call belongs to that session or chunk queue."""
    return pending.session is owner or pending.queue is owner
