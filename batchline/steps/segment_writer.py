"""Saves a chunk's results as they arrive, and waits while storage refuses writes."""

import logging
import time
from collections.abc import Callable
from typing import Self, TypeVar

from batchline.models.errors import StorageFault
from batchline.steps.context import SendContext
from batchline.steps.parts import Part, write_part
from batchline.steps.spool import Spool
from batchline.storage.objects import layout

log = logging.getLogger(__name__)
T = TypeVar("T")

STORAGE_PATIENCE_S = 60.0
"""Seconds that a chunk waits, without sending, for storage that refuses writes, before it gives up."""

UNSAVED_PATIENCE_FACTOR = 15
"""Factor on the wait while there are unsaved results, which giving up would lose though they were paid for."""

SAVE_AFTER_FRACTION = 0.75
SLOW_AFTER_FRACTION = 0.15
"""Fractions of the flush interval: until results are saved, and until sending pauses as the save is slow.

Their sum is below 1, since every result must be saved within the interval.
"""

MIN_SLOW_S = 0.25

PROBE_BYTES = 2**16
"""Size of the empty segment written before the first request: enough for a full disk to refuse it."""

STORAGE_PAUSE_S = 0.25
MAX_STORAGE_PAUSE_S = 5.0


class SegmentWriter:
    """Saves a chunk's spool as segments, by flush interval and by size.

    While storage refuses writes, the batch sends nothing in this process. If the block raises, unsaved results are
    tried once more.
    """

    def __init__(self, context: SendContext, spool: Spool, chunk: int, segment_key: Callable[[], str]) -> None:
        self.segment_keys: list[str] = []
        self._failure: tuple[float, StorageFault] | None = None
        self._chunk = chunk
        self._new_segment_key = segment_key
        self._context = context
        self._spool = spool
        self._due_at = time.monotonic() + SAVE_AFTER_FRACTION * context.flush_interval_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is not None:
                self.flush()
        except StorageFault as fault:
            log.warning(
                "chunk %d: answers could not be saved; the next run sends their requests again: %s",
                self._chunk,
                fault,
            )
        finally:
            if self.is_failing:  # the other chunks would pay for results that storage refuses as well
                self._context.session.resume_later(self._chunk, STORAGE_PATIENCE_S)
            else:
                self._context.session.resume(self._chunk)

    @property
    def is_failing(self) -> bool:
        """True while storage refuses writes."""
        return self._failure is not None

    def next_flush_in_s(self) -> float:
        """Return the seconds until the next save is due."""
        return max(0.05, self._due_at - time.monotonic())

    def probe_storage(self) -> None:
        """Write an empty segment unless storage accepted a write before; waits like `write_part_when_possible`."""

        def write_empty_segment() -> bool:
            self._context.store.put(self._new_segment_key(), b"[]".ljust(PROBE_BYTES) + b"\n")
            return True

        if not self._context.is_storage_writable:
            self._retry_until_accepted(write_empty_segment)
            self._context.is_storage_writable = True

    def flush_if_due(self) -> None:
        """Save if it is time; raises `StorageFault` if storage has refused for too long."""
        is_late = time.monotonic() >= self._due_at
        is_full = self._spool.unsaved_bytes >= self._context.flush_bytes or self._spool.is_overflowing
        if not is_late and (self.is_failing or not is_full):
            return
        started_at, interval_s = time.monotonic(), self._context.flush_interval_s
        if not self.is_failing:  # while a write hangs, no further results may arrive that are not saved either
            after_s = max(MIN_SLOW_S, SLOW_AFTER_FRACTION * interval_s)
            self._context.session.permit.suspend(self._chunk, "storage is slow", after_s=after_s)
        self._try_write(self._flush_and_trim)
        self._due_at = (
            time.monotonic() + self._pause_s if self.is_failing else started_at + SAVE_AFTER_FRACTION * interval_s
        )

    def write_part_when_possible(self, keys: layout.PartKeys) -> Part:
        """Write the chunk's part and return it; waits while storage refuses.

        Raises `StorageFault` if that takes too long or the session is interrupted, and `LeaseLost`.
        """
        chunk, context, spool = self._chunk, self._context, self._spool
        return self._retry_until_accepted(
            lambda: write_part(context.store, keys, chunk=chunk, spool=spool, sender=context.sender_id)
        )

    def flush(self) -> None:
        """Save the results that no segment holds yet."""
        if not self._spool.unsaved_bytes:
            return
        key = self._new_segment_key()
        with self._context.store.writer(key) as file:
            for block in self._spool.unsaved_blocks():
                file.write(block)
        # Only after the writer has closed the object without an error.
        self._spool.mark_saved()
        self.segment_keys.append(key)

    def _flush_and_trim(self) -> bool:
        self.flush()
        self._spool.write_overflow()
        return True

    def _retry_until_accepted(self, write: Callable[[], T]) -> T:
        while (result := self._try_write(write)) is None:
            # An interrupted session leaves the chunk to the next runner; a cancelled one has to end it here.
            if self._failure is not None and self._context.session.is_interrupted:
                raise self._failure[1]
            time.sleep(self._pause_s)
            self._context.raise_if_lost()
        return result

    def _try_write(self, write: Callable[[], T]) -> T | None:
        """Return the result of the write, or None if storage refuses it; sending is then suspended."""
        chunk, session = self._chunk, self._context.session
        try:
            result = write()
        except StorageFault as fault:
            now = time.monotonic()
            self._context.is_storage_writable = False
            session.permit.suspend(chunk, f"sending waits for storage: {fault}")
            patience_s = STORAGE_PATIENCE_S * (UNSAVED_PATIENCE_FACTOR if self._spool.unsaved_bytes else 1)
            if self._failure is None:
                log.warning("chunk %d: %s; sending waits for storage", chunk, fault)
            elif now - self._failure[0] > patience_s:
                raise
            # The time of the first refusal is kept, the fault is the latest one.
            self._failure = (self._failure[0] if self._failure else now, fault)
            return None
        self._failure = None
        session.resume(chunk)
        return result

    @property
    def _pause_s(self) -> float:
        """Seconds between attempts while storage refuses."""
        return min(self._context.flush_interval_s, MAX_STORAGE_PAUSE_S)
