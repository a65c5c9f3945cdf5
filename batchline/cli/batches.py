"""`batchline batches`: list, look at, cancel, retry, resume, read and delete batches."""

import sys
import time
from datetime import datetime
from typing import Annotated
from uuid import UUID

import cyclopts
from cyclopts import Parameter

from batchline.cli.console import messages, print_json, results
from batchline.cli.exits import Exit, exit_of_batch
from batchline.cli.meter import span, speed
from batchline.cli.run import run
from batchline.cli.show import show
from batchline.cli.tables import batch_table, one_line, print_table, runner_note
from batchline.models.batches import BatchResponse, StatusFilter
from batchline.models.errors import InvalidInput
from batchline.models.status import TERMINAL
from batchline.operations import Batchline
from batchline.storage.records import BatchRecord

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
WATCH_S = 1.0

app = cyclopts.App(
    name="batches", help="List, cancel, retry, resume, read and delete batches.", help_format="plaintext"
)
app.command(show)
# By name, so that they are loaded when they are asked for; their help is then to be told here.
app.command("batchline.cli.results:results", name="results", help="Print what became of each request.")
app.command("batchline.cli.download:download", name="download", help="Copy a finished batch's files to a folder.")


@app.command(name="list")
def list_(
    *,
    search: str | None = None,
    status: StatusFilter | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    member_id: UUID | None = None,
    active_first: Flag = False,
    limit: int = 20,
    after: str | None = None,
    json: Flag = False,
) -> None:
    """List batches, newest first.

    Parameters
    ----------
    search:
        Only batches with that in their id, file name or metadata; case does not matter.
    status:
        in_progress takes in validating and finalizing, cancelled cancelling; expired are also those that are
        overdue or ended late.
    created_after:
        Only batches made then or later (ISO 8601).
    created_before:
        Only batches made then or earlier.
    member_id:
        Only batches that this member made.
    active_first:
        Batches that are not over before those that are.
    limit:
        At most so many, up to 100.
    after:
        Only batches behind the one of that id.
    json:
        Print a list object of batches with their analytics.
    """
    client = Batchline(source="cli")
    page = client.batches.records(
        search=search,
        status=status,
        created_after=created_after,
        created_before=created_before,
        member_id=member_id,
        active_first=active_first,
        limit=limit,
        after=after,
        include="analytics",
    )
    if json:
        print_json(page.to_json(lambda batch: batch.to_response(include_analytics=True)))
        return
    print_table(batch_table(page.data, lease_s=client.engine.settings.lease_s), none="no batches")
    if page.has_more:
        messages().print(f"there are more: --after {page.last_id}", markup=False)


@app.command
def create(
    file_id: str,
    /,
    *,
    endpoint: str = "/v1/chat/completions",
    window: str = "24h",
    metadata: dict[str, str] | None = None,
    json: Flag = False,
) -> None:
    """Make a batch of an uploaded file, for somebody to run.

    Parameters
    ----------
    file_id:
        Id of the input file.
    endpoint:
        The endpoint of every request in it.
    window:
        How long the batch may take, such as 90m, 24h or 7d.
    metadata:
        Up to 16 pairs of your own, each as --metadata.KEY VALUE.
    json:
        Print the batch as JSON.
    """
    batch = Batchline(source="cli").batches.create(
        input_file_id=file_id, endpoint=endpoint, completion_window=window, metadata=metadata, via=None
    )
    _say(batch, json=json, then=f"run it with: batchline run --resume {batch.id}")


@app.command
def cancel(batch_id: str, /, *, wait: Flag = False, json: Flag = False) -> None:
    """Cancel a batch: nothing more is sent, what was answered is kept.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    wait:
        Wait until it is cancelled and its files are written.
    json:
        Print the batch as JSON.
    """
    client = Batchline(source="cli")
    batch = client.batches.cancel(batch_id)
    if wait:
        batch = client.batches.wait(batch_id)
    then = "" if batch.status in TERMINAL else "its runner writes what was answered within the grace"
    record = client.batches.record(batch_id)
    if runner_note(record, now=time.time(), lease_s=client.engine.settings.lease_s):
        then = f"nobody runs it: write its files with: batchline run --resume {batch_id}"
    _say(batch, json=json, then=then)


@app.command
def retry(
    batch_id: str,
    request_ids: tuple[str, ...] = (),
    /,
    *,
    start: Flag = False,
    local: Flag = False,
    json: Flag = False,
) -> int:
    """Try requests of a finished batch again: the named ones, or all that failed, expired or were cancelled.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    request_ids:
        Ids of its failed requests, as the error file and `batches results` have them.
    start:
        Run it now, as `batchline run` does.
    local:
        Run it now, without Prefect.
    json:
        Print the batch as JSON.
    """
    batches = Batchline(source="cli").batches
    if request_ids:
        batch = batches.retry_requests(batch_id, request_ids, via=None)
    else:
        batch = batches.retry(batch_id, via=None)
    counts = batch.request_counts
    waiting = counts.total - counts.completed - counts.failed
    if start or local:
        messages().print(f"{waiting:,} requests to send again", markup=False)
        return run(resume=batch_id, local=local, json=json)
    _say(batch, json=json, then=f"{waiting:,} requests to send again: batchline run --resume {batch_id}")
    return Exit.OK


@app.command
def resume(batch_id: str, /, *, local: Flag = False, json: Flag = False) -> int:
    """Go on with a batch that was stopped or whose runner died; the same as `batchline run --resume`.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    local:
        Without Prefect.
    json:
        Print the batch as JSON at the end.
    """
    return run(resume=batch_id, local=local, json=json)


@app.command
def delete(batch_id: str, /, *, yes: Flag = False) -> None:
    """Delete a batch with its output and error files; one that runs is cancelled first. Its input file stays.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    yes:
        Do not ask.
    """
    client = Batchline(source="cli")
    batch = client.batches.record(batch_id)
    if not yes and not _agreed(batch):
        return
    client.batches.delete(batch_id)
    messages().print(f"deleted {batch_id}", markup=False)


def _agreed(batch: BatchRecord) -> bool:
    if not sys.stdin.isatty():
        raise InvalidInput(f"batch {batch.id} is not deleted without --yes where nobody can be asked", param="yes")
    question = f"delete {batch.id} ({batch.status}, {batch.completed:,} answers)? [y/N] "
    return messages().input(question, markup=False).strip().lower() in {"y", "yes"}


@app.command
def watch(batch_id: str, /, *, json: Flag = False) -> int:
    """Follow a batch that somebody runs until it is over; the exit status is that of `run`.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    json:
        Print the batch with its analytics as JSON at the end.
    """
    client = Batchline(source="cli")
    said, first = "", None
    while (batch := client.batches.record(batch_id)).status not in TERMINAL:
        settled = batch.completed + batch.failed
        first = first or (time.monotonic(), settled)
        words = _progress(batch, first, lease_s=client.engine.settings.lease_s)
        if words != said:
            messages().print(words, markup=False)
            said = words
        time.sleep(WATCH_S)
    show(batch_id, json=json)
    return exit_of_batch(batch.to_response())


def _progress(batch: BatchRecord, first: tuple[float, int], *, lease_s: float) -> str:
    """Where the batch is, from its record alone."""
    settled = batch.completed + batch.failed
    per_s = (settled - first[1]) / max(1e-3, time.monotonic() - first[0])
    note = runner_note(batch, now=time.time(), lease_s=lease_s)
    rate = speed(per_s) if per_s and not note else ""
    left = (
        f"about {span(max(1.0, (batch.total - settled) / per_s))} left" if rate and settled < batch.total else ""
    )
    done = f"{settled:,}/{batch.total:,} done, {batch.failed:,} failed" if batch.total else ""
    return one_line((batch.status, done, rate, left, note))


def _say(batch: BatchResponse, *, json: bool, then: str) -> None:
    """Print the batch: its JSON, or its id, with its state and what comes next beside it."""
    if json:
        print_json(batch.model_dump_json())
        return
    results().print(batch.id)
    messages().print(one_line((batch.status, then)), markup=False, soft_wrap=True)
