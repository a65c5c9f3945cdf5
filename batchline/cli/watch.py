"""`batchline batches watch`: follow a batch that any process runs, by its database record."""

from batchline.cli.console import print_note
from batchline.cli.exit_codes import ExitCode, exit_code_of_batch
from batchline.cli.options import BatchId, JsonFlag
from batchline.cli.progress import Progress
from batchline.cli.show import show
from batchline.client import Batchline, BatchRecord, ProgressSnapshot
from batchline.models.formatting import format_rate, format_span, join_parts
from batchline.models.status import TERMINAL_STATUSES, BatchStatus

ABANDONED_S = 30.0
"""Seconds to keep watching a batch that no process runs: another may resume it."""


def watch(batch_id: BatchId, /, *, json: JsonFlag = False) -> int:
    """Follow a batch, in whichever process it runs, until it has ended or no process runs it.

    The exit status is that of `run`.
    """
    client = Batchline(origin="cli")
    try:
        batch = follow_batch(client, batch_id, abandoned_s=min(ABANDONED_S, client.settings.lease_s))
    except KeyboardInterrupt:
        print_note(
            f"stopped watching; the batch continues. To cancel it: batchline batches cancel {batch_id}",
            is_whole=True,
        )
        return ExitCode.STOPPED
    if batch.status not in TERMINAL_STATUSES:
        print_note("stopped watching: no process runs the batch")
    show(batch_id, json=json)
    return exit_code_of_batch(batch)


def follow_batch(client: Batchline, batch_id: str, *, abandoned_s: float) -> BatchRecord:
    """Show the batch's progress until it has ended, or no process has run it for `abandoned_s`."""
    previous_note = previous_text = ""
    with Progress() as progress:
        for batch in client.batches.watch(batch_id, abandoned_s=abandoned_s):
            snapshot, note = _read_progress(client, batch)
            if note and note != previous_note:
                command = f"batchline run --resume {batch.id}"
                print_note(f"{batch.status}, {note}: to continue: {command}", is_whole=True)
            text = join_parts(batch.status, note)
            if text != previous_text:
                progress.doing(text)
            progress.show(snapshot)
            previous_note, previous_text = note, text
    return client.batches.record(batch_id)


def _read_progress(client: Batchline, batch: BatchRecord) -> tuple[ProgressSnapshot | None, str]:
    """Return the batch's counters, None until its input is validated, and a note if no process runs it."""
    progress = client.batches.progress(batch)
    if not batch.total:
        return None, progress.note
    eta = f"about {format_span(max(1.0, progress.eta_s))} left" if progress.eta_s else ""
    snapshot = ProgressSnapshot(
        settled=progress.settled,
        total=batch.total,
        failed=progress.failed,
        eta="writing the files" if batch.status is BatchStatus.FINALIZING else eta,
        details=join_parts(
            batch.status, format_rate(progress.per_s) if progress.per_s and not progress.note else ""
        ),
        paused=progress.note or None,
    )
    return snapshot, progress.note
