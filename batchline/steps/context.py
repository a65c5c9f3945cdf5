"""What sending a chunk needs of the process's share in the batch."""

from threading import BoundedSemaphore
from typing import Protocol

from batchline.analytics.request_metrics import RequestMetrics
from batchline.storage.objects.store import ObjectStore
from batchline.upstream.batch_session import BatchSession


class SendContext(Protocol):
    """What sending a chunk needs of the process's hold on the batch."""

    store: ObjectStore
    session: BatchSession
    flush_interval_s: float
    flush_bytes: int
    sender_id: str
    """By what name this process's parts are told from those of others that send for the same runner."""

    is_storage_writable: bool
    """True once storage has taken a write under this hold."""

    large_chunk_slots: BoundedSemaphore
    """Held while a chunk with a very long line is sent, of which a batch may have few open."""

    def find_upstream(self, model: str | None) -> str:
        """The name of the upstream that serves the model."""

    def raise_if_lost(self) -> None:
        """Raise `LeaseLost` once another runner has the batch, or may have it."""

    def add_recovered(self, metrics: list[RequestMetrics]) -> None:
        """Count requests that an earlier run had settled."""

    def mark_chunk_started(self, chunk: int) -> bool:
        """Whether the chunk has not been tried under this hold before; asking makes it so."""

    def add_settled(self, chunk: int, completed: int, failed: int) -> None:
        """Hear of requests of the chunk that are settled, those that an earlier try had settled included."""
