"""The attempts of a lane that wait for their next try, by the time at which they are due."""

from heapq import heapify, heappop, heappush

from batchline.upstream.attempt import Attempt
from batchline.upstream.run import Feed, Run


class RetryQueue:
    """A heap of attempts; of those due at one time the first that was put in comes first."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Attempt]] = []
        self._number = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def put(self, attempt: Attempt, due: float) -> None:
        """Let the attempt wait until `due`."""
        self._number += 1
        heappush(self._entries, (due, self._number, attempt))

    def first(self) -> tuple[float, Attempt]:
        """The attempt that is due first, and when; it stays."""
        due, _, attempt = self._entries[0]
        return due, attempt

    def pop(self) -> Attempt:
        """Take the attempt that is due first."""
        return heappop(self._entries)[2]

    def remove(self, of: Run | Feed) -> list[Attempt]:
        """Take all attempts of a run or a feed."""
        removed = [attempt for _, _, attempt in self._entries if is_of(attempt, of)]
        if removed:
            self._entries = [entry for entry in self._entries if not is_of(entry[2], of)]
            heapify(self._entries)
        return removed


def is_of(attempt: Attempt, of: Run | Feed) -> bool:
    """True if the attempt belongs to that run or feed."""
    return attempt.run is of or attempt.feed is of
