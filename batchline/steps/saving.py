"""Saves a chunk's answers while they come, and waits for storage that refuses them."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from batchline.models.errors import StorageFault
from batchline.steps.parts import Part, write_part
from batchline.steps.spool import Spool
from batchline.storage import layout

if TYPE_CHECKING:
    from batchline.steps.chunk import Hold

log = logging.getLogger(__name__)
T = TypeVar("T")

STORAGE_PATIENCE_S = 60.0
"""Seconds for which a chunk waits, sending nothing, while storage refuses writes, before it gives up."""

UNSAVED_PATIENCE = 15
"""Times as long while giving up would throw away answers, which have been paid for."""

SAVE_AFTER = 0.75
SLOW_AFTER = 0.15
"""Parts of the flush interval: until answers are saved, and until sending is suspended because that takes long.

Together they are less than the interval, within which every answer is to be saved.
"""

LEAST_SLOW_S = 0.25

PROOF_BYTES = 2**16
"""Size of the empty segment that is written before the first request."""

STORAGE_PAUSE_S = 0.25
MOST_STORAGE_PAUSE_S = 5.0


class Saver:
    """Saves a chunk's spool as segments, every flush interval or so many bytes.

    While storage refuses, the batch sends nothing in this process. What is unsaved when the block is left by an
    error is tried once more.
    """

    def __init__(self, hold: "Hold", spool: Spool, chunk: int, segment_key: Callable[[], str]) -> None:
        self.keys: list[str] = []
        self._failing: tuple[float, StorageFault] | None = None
        self._chunk = chunk
        self._segment_key = segment_key
        self._hold = hold
        self._spool = spool
        self._due = time.monotonic() + SAVE_AFTER * hold.flush_interval_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.flush()
        except StorageFault as fault:
            log.warning(
                "chunk %d: answers could not be saved, the next run sends their requests again: %s",
                self._chunk,
                fault,
            )
        finally:
            if self.is_failing:  # other chunks would pay for answers that storage refuses as well
                self._hold.run.resume_later(self._chunk, STORAGE_PATIENCE_S)
            else:
                self._hold.run.resume(self._chunk)

    @property
    def is_failing(self) -> bool:
        """True while storage refuses writes."""
        return self._failing is not None

    def next_flush_in_s(self) -> float:
        """Seconds until answers must be saved."""
        return max(0.05, self._due - time.monotonic())

    def prove_storage(self) -> None:
        """Write an empty segment unless storage has taken a write under this hold; waits while it refuses.

        Raises as `finish` does.
        """
        if not self._hold.storage_is_proven:
            empty = b"[]".ljust(PROOF_BYTES) + b"\n"
            self._until_taken(lambda: self._put(self._segment_key(), empty))
            self._hold.storage_is_proven = True

    def tend(self) -> None:
        """Save if it is time; raises `StorageFault` when storage has refused for too long."""
        is_late = time.monotonic() >= self._due
        is_full = self._spool.unsaved_bytes >= self._hold.flush_bytes or self._spool.is_overflowing
        if not is_late and (self.is_failing or not is_full):
            return
        began, interval_s = time.monotonic(), self._hold.flush_interval_s
        if not self.is_failing:  # while a write hangs, no more answers may come that are not saved either
            after_s = max(LEAST_SLOW_S, SLOW_AFTER * interval_s)
            self._hold.run.permit.suspend(self._chunk, "storage is slow", after_s=after_s)
        self._try(self._save)
        self._due = time.monotonic() + self._pause_s if self.is_failing else began + SAVE_AFTER * interval_s

    def finish(self, keys: layout.PartKeys) -> Part:
        """Write the chunk's part and return it; waits while storage refuses.

        Raises `StorageFault` when that takes too long or the run is to stop, and `LeaseLost`.
        """
        chunk, hold, spool = self._chunk, self._hold, self._spool
        return self._until_taken(
            lambda: write_part(hold.store, keys, chunk=chunk, spool=spool, sender=hold.sender)
        )

    def flush(self) -> None:
        """Save what no segment holds yet."""
        if not self._spool.unsaved_bytes:
            return
        key = self._segment_key()
        with self._hold.store.writer(key) as file:
            for piece in self._spool.unsaved():
                file.write(piece)
        self._spool.mark_saved()
        self.keys.append(key)

    def _save(self) -> bool:
        self.flush()
        self._spool.tidy()
        return True

    def _put(self, key: str, data: bytes) -> bool:
        self._hold.store.put(key, data)
        return True

    def _until_taken(self, write: Callable[[], T]) -> T:
        while (taken := self._try(write)) is None:
            if self._failing is not None and self._hold.run.interrupted:
                raise self._failing[1]
            time.sleep(self._pause_s)
            self._hold.check()
        return taken

    def _try(self, write: Callable[[], T]) -> T | None:
        """Return what the write gives, or None if storage refuses it; sending is suspended until it succeeds."""
        chunk, run = self._chunk, self._hold.run
        try:
            taken = write()
        except StorageFault as fault:
            self._refused(fault)
            return None
        self._failing = None
        run.resume(chunk)
        return taken

    def _refused(self, fault: StorageFault) -> None:
        chunk, now = self._chunk, time.monotonic()
        self._hold.storage_is_proven = False
        self._hold.run.permit.suspend(chunk, f"sending waits for storage: {fault}")
        patience_s = STORAGE_PATIENCE_S * (UNSAVED_PATIENCE if self._spool.unsaved_bytes else 1)
        if self._failing is None:
            log.warning("chunk %d: %s; sending waits for storage", chunk, fault)
        elif now - self._failing[0] > patience_s:
            raise fault
        self._failing = (self._failing[0] if self._failing else now, fault)

    @property
    def _pause_s(self) -> float:
        """Seconds between tries while storage refuses."""
        return min(self._hold.flush_interval_s, MOST_STORAGE_PAUSE_S)
