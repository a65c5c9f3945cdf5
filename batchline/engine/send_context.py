"""Base of the runner and the remote senders: the session, the heartbeat's state, and the shared resources."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from batchline.engine.sender_reports import SenderReport, decode_reports, encode_report
from batchline.engine.services import Services
from batchline.models.errors import InvalidInput, LeaseLost
from batchline.storage.records.senders import SharedLease
from batchline.storage.records.store import BatchRecord
from batchline.upstream.batch_session import BatchSession
from batchline.upstream.session_progress import SessionProgress
from batchline.upstream.stop_reason import StopReason

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between heartbeats: at most a quarter of the lease. A cancel takes effect within two heartbeats."""

HEARTBEAT_JOIN_TIMEOUT_S = 5.0
"""Seconds that closing a sender waits for its heartbeat thread."""

MAX_OPEN_LARGE_CHUNKS = 2
"""Chunks with very long lines in progress at once: while one waits for its last responses, another sends."""


class SenderBase:
    """One process's session for a batch, with the state that its chunks share."""

    no_upstream_message: ClassVar[str]
    """Error message for a model that no upstream serves."""

    def __init__(self, services: Services, batch: BatchRecord, *, sender_id: str) -> None:
        self.services = services
        self.settings = settings = services.settings
        self.batch = batch
        self.options = batch.effective_options
        self.sender_id = sender_id
        self.store = services.store
        self.records = services.records
        self.flush_interval_s = settings.flush_interval_s
        self.flush_bytes = settings.flush_bytes
        self.is_storage_writable = False
        self.large_chunk_slots = threading.BoundedSemaphore(MAX_OPEN_LARGE_CHUNKS)
        self.session: BatchSession = services.dispatcher.open_session(
            batch.id,
            deadline=None if settings.run_past_window else batch.expires_at,
            grace_s=settings.grace_s,
            options=self.options,
        )
        self._report_number = 0
        self._upstream_names: dict[str | None, str] = {}
        self._lease_error: LeaseLost | None = None
        self._heartbeat_started_at: float | None = None
        self._heartbeat_interval_s = min(HEARTBEAT_INTERVAL_S, settings.lease_s / 4)
        self._counts_lock = threading.Lock()

    def find_upstream(self, model: str | None) -> str:
        """Return the name of the upstream that serves the model; raises `InvalidInput` if none does."""
        upstream_name = self._upstream_names.get(model)
        if upstream_name is None:
            upstream = self.settings.upstream_for(model)
            if upstream is None:
                raise InvalidInput(self.no_upstream_message.format(model=model))
            upstream_name = self._upstream_names[model] = upstream.name
        return upstream_name

    def raise_if_lost(self) -> None:
        """Raise `LeaseLost` if another runner has the batch, or may have it."""
        heartbeat_started_at, half_s = self._heartbeat_started_at, self.settings.lease_s / 2
        # A heartbeat that hangs in the database cannot report its own failure.
        if (
            self._lease_error is None
            and heartbeat_started_at is not None
            and time.monotonic() - heartbeat_started_at > half_s
        ):
            self._mark_lost(LeaseLost(f"batch {self.batch.id}: the database has not answered for {half_s:.0f} s"))
        if self._lease_error is not None:
            raise self._lease_error

    def _send_own_report(
        self, epoch: int, *, chunks: dict[int, tuple[int, int]], progress: SessionProgress
    ) -> tuple[SharedLease, dict[str, SenderReport]]:
        """Send this process's report; return the lease and the reports of all senders.

        Raises `LeaseLost` if the epoch is over.
        """
        self._report_number += 1
        report = SenderReport(
            number=self._report_number, chunks=chunks, progress=progress, stopped=self.session.stop_reason
        )
        lease = self.records.report_sender(self.batch.id, epoch, self.sender_id, encode_report(report).decode())
        return lease, decode_reports(lease.reports)

    @contextmanager
    def _track_heartbeat(self) -> Iterator[None]:
        """Record when a heartbeat starts, so that `raise_if_lost` detects one that hangs."""
        self._heartbeat_started_at = time.monotonic()
        try:
            yield
        finally:
            self._heartbeat_started_at = None

    def _mark_lost(self, error: LeaseLost) -> None:
        """Stop sending; requests in flight keep the grace period, and `raise_if_lost` raises from now on."""
        log.error("%s", error)
        self._lease_error = error
        self.session.stop(StopReason(code=None, message=str(error)))

    def _join_heartbeat(self, thread: threading.Thread) -> None:
        """Wait for the heartbeat thread, but not indefinitely if the database does not answer."""
        thread.join(HEARTBEAT_JOIN_TIMEOUT_S)
        if thread.is_alive():
            log.warning("batch %s: the heartbeat still waits for the database; closing without it", self.batch.id)
