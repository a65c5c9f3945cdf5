"""The interfaces between the steps and the lease of the batch, or a remote sender's part in it."""

from threading import BoundedSemaphore, Semaphore
from typing import Protocol

from batchline.models.options import BatchOptions
from batchline.models.settings import Settings
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import BatchRecord, Lease, Records
from batchline.upstream.batch_session import BatchSession


class SendContext(Protocol):
    """The part of the batch's lease, or of a remote sender, that sending a chunk uses."""

    store: ObjectStore
    session: BatchSession
    options: BatchOptions
    """The options that apply to the batch, defaults included."""

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

    def mark_chunk_started(self, chunk: int) -> bool:
        """Mark the chunk as started; return True the first time under this lease."""

    def add_settled(self, chunk: int, completed: int, failed: int, *, is_recovered: bool = False) -> None:
        """Count settled requests of the chunk; `is_recovered` if an earlier session settled them."""


class BatchContext(Protocol):
    """The part of the batch's lease that the steps of a whole batch use."""

    batch: BatchRecord
    """The batch's record as this runner last wrote it."""

    claim: Lease
    records: Records
    settings: Settings
    store: ObjectStore
    session: BatchSession
    options: BatchOptions
    """The options that apply to the batch, defaults included."""

    validation_slots: Semaphore
    """Acquired while the input is validated; limits how many validations run at once."""

    def raise_if_lost(self) -> None:
        """Raise `LeaseLost` if another runner has the batch, or may have it."""

    def counts(self) -> tuple[int, int]:
        """Return the requests completed and failed so far, earlier sessions included."""
