"""`batchline batches watch`: follow a batch that any process runs, by its database record."""

import time

from rich.console import Console

from batchline.cli.console import stderr_console
from batchline.cli.exit_codes import ExitCode, exit_code_of_batch
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.cli.show import show
from batchline.client import Batchline
from batchline.client.progress import runner_state
from batchline.engine.progress_meter import IDLE_AFTER_S, ProgressSnapshot, RecentRate
from batchline.models.formatting import span, speed
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.storage.records.store import BatchRecord

POLL_INTERVAL_S = 0.5
ABANDONED_S = 30.0
"""Seconds to keep watching a batch that no process runs: another may resume it."""


def watch(batch_id: str, /, *, json: Flag = False) -> int:
    """Follow a batch, whoever runs it, until it is over or has been left; the exit status is that of `run`.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    json:
        Print the batch with its analytics as JSON at the end.
    """
    client = Batchline(origin="cli")
    try:
        batch = follow_batch(client, batch_id, abandoned_s=min(ABANDONED_S, client.services.settings.lease_s))
    except KeyboardInterrupt:
        stderr_console().print(
            f"watched no longer; to end the batch itself: batchline batches cancel {batch_id}",
            markup=False,
            soft_wrap=True,
        )
        return ExitCode.STOPPED
    if batch.status not in TERMINAL_STATUSES:
        stderr_console().print("watched no longer: no process runs the batch")
    show(batch_id, json=json)
    return exit_code_of_batch(batch.to_response())


def follow_batch(client: Batchline, batch_id: str, *, abandoned_s: float) -> BatchRecord:
    """Show the batch's progress until it has ended, or no process has run it for `abandoned_s`.

    A batch that waits for its first run is followed until its window has closed.
    """
    lease_s, active_at = client.services.settings.lease_s, time.monotonic()
    with WatchDisplay(stderr_console()) as display:
        while True:
            batch, now = client.batches.record(batch_id), client.services.records.now()
            note = runner_state(batch, now=now, lease_s=lease_s)
            if not note or (batch.status is BatchStatus.VALIDATING and now < batch.expires_at and abandoned_s):
                active_at = time.monotonic()
            if batch.status in TERMINAL_STATUSES or (note and time.monotonic() - active_at >= abandoned_s):
                return batch
            display.show_record(batch, note)
            time.sleep(POLL_INTERVAL_S)


class WatchDisplay(Progress):
    """The progress of a batch that another process runs, as far as its record shows it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._rate = RecentRate()
        self._snapshot: ProgressSnapshot | None = None
        self._note = ""
        self._status_text = ""

    def show_record(self, batch: BatchRecord, note: str) -> None:
        """Show the current record."""
        if note and note != self._note:
            stderr_console().print(
                f"{batch.status}, {note}: go on with: batchline run --resume {batch.id}",
                markup=False,
                soft_wrap=True,
            )
        self._note = note
        status_text = " · ".join(filter(None, (batch.status, note)))
        if status_text != self._status_text:
            self._status_text = status_text
            self.doing(status_text)
        self._rate.add(time.monotonic(), batch.completed + batch.failed)
        self._snapshot = self._build_snapshot(batch, note) if batch.total else None

    def _build_snapshot(self, batch: BatchRecord, note: str) -> ProgressSnapshot:
        settled = batch.completed + batch.failed
        is_idle = self._rate.idle_s() > IDLE_AFTER_S
        rate = None if note or is_idle or batch.status is BatchStatus.FINALIZING else self._rate.per_s()
        eta_text = f"about {span(max(1.0, (batch.total - settled) / rate))} left" if rate else ""
        return ProgressSnapshot(
            settled=settled,
            total=batch.total,
            failed=batch.failed,
            eta="writing the files" if batch.status is BatchStatus.FINALIZING else eta_text,
            details=" · ".join(filter(None, (batch.status, speed(rate) if rate else ""))),
            paused=note or None,
        )

    def _reading(self) -> ProgressSnapshot | None:
        return self._snapshot
