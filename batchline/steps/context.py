"""The interface between sending a chunk and the process's part in the batch."""

from threading import BoundedSemaphore
from typing import Protocol

from batchline.analytics.request_metrics import RequestMetrics
from batchline.storage.objects.store import ObjectStore
from batchline.upstream.batch_session import BatchSession


class SendContext(Protocol):
    """The part of the batch's lease, or of a remote sender, that sending a chunk uses."""

    store: ObjectStore
    session: BatchSession
    flush_interval_s: float
    flush_bytes: int
    sender_id: str
    """Distinguishes this process's parts from those of other senders; empty for the runner."""

    is_storage_writable: bool
    """True once storage has accepted a write in this session."""

    large_chunk_slots: BoundedSemaphore
    """Acquired while a chunk with a very long line is sent; limits how many are in memory at once."""

    def find_upstream(self, model: str | None) -> str:
        """Return the name of the upstream that serves the model; raises `InvalidInput` if none does."""

    def raise_if_lost(self) -> None:
        """Raise `LeaseLost` if another runner has the batch, or may have it."""

    def add_recovered(self, metrics: list[RequestMetrics]) -> None:
        """Count requests that an earlier session settled."""

    def mark_chunk_started(self, chunk: int) -> bool:
        """Mark the chunk as started; return True the first time under this lease."""

    def add_settled(self, chunk: int, completed: int, failed: int) -> None:
        """Count settled requests of the chunk, including those recovered from an earlier try."""
