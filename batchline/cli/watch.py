"""`batchline batches watch`: a batch that any process runs, followed by its record."""

import time

from rich.console import Console

from batchline.cli.console import messages
from batchline.cli.exits import Exit, exit_of_batch
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.cli.show import show
from batchline.models.formatting import span, speed
from batchline.models.status import TERMINAL, BatchStatus
from batchline.operations import Batchline
from batchline.operations.progress import runner_note
from batchline.steps.meter import SILENCE_S, Reading, RecentRate
from batchline.storage.records import BatchRecord

LOOK_S = 0.5
LEFT_S = 30.0
"""Seconds for which a batch that no process runs is watched on: another may continue it."""


def watch(batch_id: str, /, *, json: Flag = False) -> int:
    """Follow a batch, whoever runs it, until it is over or has been left; the exit status is that of `run`.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    json:
        Print the batch with its analytics as JSON at the end.
    """
    client = Batchline(source="cli")
    try:
        batch = follow(client, batch_id, left_s=min(LEFT_S, client.engine.settings.lease_s))
    except KeyboardInterrupt:
        messages().print(
            f"watched no longer; to end the batch itself: batchline batches cancel {batch_id}",
            markup=False,
            soft_wrap=True,
        )
        return Exit.STOPPED
    if batch.status not in TERMINAL:
        messages().print("watched no longer: no process runs the batch")
    show(batch_id, json=json)
    return exit_of_batch(batch.to_response())


def follow(client: Batchline, batch_id: str, *, left_s: float) -> BatchRecord:
    """Show the batch's progress until it is over, or no process has run it for `left_s`.

    One that waits for its first run is followed until its window has closed.
    """
    lease_s, since = client.engine.settings.lease_s, time.monotonic()
    with Following(messages()) as display:
        while True:
            batch, now = client.batches.record(batch_id), client.engine.records.now()
            note = runner_note(batch, now=now, lease_s=lease_s)
            if not note or (batch.status is BatchStatus.VALIDATING and now < batch.expires_at and left_s):
                since = time.monotonic()
            if batch.status in TERMINAL or (note and time.monotonic() - since >= left_s):
                return batch
            display.look(batch, note)
            time.sleep(LOOK_S)


class Following(Progress):
    """The progress of a batch that another process runs, as far as its record tells."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._rate = RecentRate()
        self._seen: Reading | None = None
        self._note = ""
        self._words = ""

    def look(self, batch: BatchRecord, note: str) -> None:
        """Show the record as it is now."""
        if note and note != self._note:
            messages().print(
                f"{batch.status}, {note}: go on with: batchline run --resume {batch.id}",
                markup=False,
                soft_wrap=True,
            )
        self._note = note
        words = " · ".join(filter(None, (batch.status, note)))
        if words != self._words:
            self._words = words
            self.doing(words)
        self._rate.add(time.monotonic(), batch.completed + batch.failed)
        self._seen = self._read(batch, note) if batch.total else None

    def _read(self, batch: BatchRecord, note: str) -> Reading:
        settled = batch.completed + batch.failed
        is_silent = self._rate.silent_s() > SILENCE_S
        rate = None if note or is_silent or batch.status is BatchStatus.FINALIZING else self._rate.per_s()
        left = f"about {span(max(1.0, (batch.total - settled) / rate))} left" if rate else ""
        return Reading(
            settled=settled,
            total=batch.total,
            failed=batch.failed,
            left="writing the files" if batch.status is BatchStatus.FINALIZING else left,
            details=" · ".join(filter(None, (batch.status, speed(rate) if rate else ""))),
            paused=note or None,
        )

    def _reading(self) -> Reading | None:
        return self._seen
