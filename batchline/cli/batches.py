"""`batchline batches`: create, list, watch, cancel, retry, resume, read and delete batches."""

import sys
from typing import Literal

import cyclopts

from batchline.cli.batches_list import list_
from batchline.cli.console import print_note, print_object, stderr_console
from batchline.cli.exit_codes import ExitCode
from batchline.cli.files import print_deleted
from batchline.cli.options import (
    BatchId,
    BatchOptionFlags,
    FileId,
    Flag,
    JsonFlag,
    LocalFlag,
    MetadataOption,
    RunFlag,
    StandInFlag,
    WindowOption,
    parse_seconds,
)
from batchline.cli.progress import Progress
from batchline.cli.run import run
from batchline.cli.show import show
from batchline.cli.watch import follow_batch, watch
from batchline.client import Batchline
from batchline.models.batches import BatchResponse
from batchline.models.errors import InvalidInput
from batchline.models.formatting import join_parts
from batchline.models.status import TERMINAL_STATUSES

app = cyclopts.App(
    name="batches", help="Create, list, watch, cancel, retry, read and delete batches.", help_format="plaintext"
)
app.command(list_, name="list")
app.command(show)
app.command(watch)
# By import path, so that each is loaded only if it is used; its help must then be given here.
app.command("batchline.cli.results:results", name="results", help="Print the result of each request.")
app.command("batchline.cli.download:download", name="download", help="Copy a finished batch's files to a folder.")
app.command(
    "batchline.cli.cost_estimate:cost_estimate",
    name="cost-estimate",
    help="Estimate the cost of a file's requests before any is sent.\n\nInput tokens are the requests' bytes "
    "divided by four, a rough estimate; output is bounded by the limits that requests set. Prices are those of "
    "the settings, else of the price list.",
)


@app.command
def create(
    file_id: FileId,
    /,
    *,
    endpoint: str = "/v1/chat/completions",
    window: WindowOption = "24h",
    metadata: MetadataOption = None,
    options: BatchOptionFlags = None,
    expires_after: str | None = None,
    run_: RunFlag = False,
    local: LocalFlag = False,
    stand_in: StandInFlag = False,
    json: JsonFlag = False,
) -> int:
    """Create a batch from an uploaded file; it starts with --run or when it is resumed.

    Parameters
    ----------
    endpoint:
        The endpoint of all requests in it.
    expires_after:
        Lifetime of its output and error files, such as 30d; by default they are kept.
    """
    batch = Batchline(origin="cli").batches.create(
        input_file_id=file_id,
        endpoint=endpoint,
        completion_window=window,
        metadata=metadata,
        options=options,
        output_expires_after=parse_seconds("expires-after", expires_after),
        via=None,
    )
    if run_ or local or stand_in:
        print_note(f"batch: {batch.id}")
        return run(resume=batch.id, local=local, stand_in=stand_in, json=json)
    _print_batch(batch, json=json, next_step=f"run it with: batchline run --resume {batch.id}")
    return ExitCode.OK


@app.command
def cancel(batch_id: BatchId, /, *, wait: Flag = False, json: JsonFlag = False) -> int:
    """Cancel a batch: nothing more is sent, and answers received so far are kept.

    Parameters
    ----------
    wait:
        Wait until it is cancelled and its files are written.
    """
    client = Batchline(origin="cli")
    client.batches.cancel(batch_id)
    if client.batches.is_queued(batch_id):  # it was paused, so no other process writes its files
        client.batches.wait(batch_id)
    batch = follow_batch(client, batch_id, abandoned_s=0) if wait else client.batches.record(batch_id)
    is_abandoned = bool(client.batches.runner_state(batch))
    next_step = ""
    if is_abandoned:
        next_step = f"no process is running it; to write its files: batchline run --resume {batch_id}"
    elif batch.status not in TERMINAL_STATUSES:
        next_step = f"its runner writes its files within {client.settings.grace_s:.0f} s"
    _print_batch(batch.to_response(), json=json, next_step=next_step)
    return ExitCode.STOPPED if wait and is_abandoned else ExitCode.OK


@app.command
def retry(
    batch_id: BatchId,
    request_ids: tuple[str, ...] = (),
    /,
    *,
    mark: Literal["truncated", "invalid_output"] | None = None,
    run_: RunFlag = False,
    local: LocalFlag = False,
    stand_in: StandInFlag = False,
    json: JsonFlag = False,
) -> int:
    """Send requests of a finished batch again: the given ones, or all that failed, expired or were cancelled.

    Parameters
    ----------
    request_ids:
        Ids or custom_ids of its failed requests, as in the error file and `batches results`.
    mark:
        Send instead the completed requests whose answers have this mark. A new answer replaces the old one, also
        if it has the mark again. A request that fails this time is failed, and its earlier answer is gone; one
        that is not answered before the batch ends keeps it.
    """
    if mark and request_ids:
        raise InvalidInput("give either request ids or --mark, not both", param="mark")
    batches = Batchline(origin="cli").batches
    if request_ids:
        batch = batches.retry_requests(batch_id, request_ids, via=None)
    else:
        batch = batches.retry(batch_id, mark=mark, via=None)
    counts = batch.request_counts
    pending_note = f"{counts.total - counts.completed - counts.failed:,} requests to send again"
    if run_ or local or stand_in:
        print_note(pending_note)
        return run(resume=batch_id, local=local, stand_in=stand_in, json=json)
    _print_batch(batch, json=json, next_step=f"{pending_note}: batchline run --resume {batch_id}")
    return ExitCode.OK


@app.command
def pause(batch_id: BatchId, /, *, message: str | None = None, json: JsonFlag = False) -> int:
    """Pause a batch: nothing more is sent until it is resumed, and its completion window stands still.

    Requests in flight are finished, and every answer is kept.

    Parameters
    ----------
    message:
        Reason to show with the batch.
    """
    batch = Batchline(origin="cli").batches.pause(batch_id, **({} if message is None else {"message": message}))
    _print_batch(batch, json=json, next_step=f"paused; to continue: batchline batches resume {batch_id}")
    return ExitCode.OK


@app.command
def resume(
    batch_id: BatchId, /, *, local: LocalFlag = False, stand_in: StandInFlag = False, json: JsonFlag = False
) -> int:
    """Resume a paused batch where it ran, or run one that was stopped or whose runner died.

    A paused batch is handed to its flow run in Prefect or to the server that had it; if there is neither, the
    command that continues it is printed.
    """
    client = Batchline(origin="cli")
    if client.batches.record(batch_id).pause is None or local or stand_in:
        return run(resume=batch_id, local=local, stand_in=stand_in, json=json)
    runner = client.batches.resume_where_it_ran(batch_id)
    batch = client.batches.retrieve(batch_id)
    _print_batch(batch, json=json, next_step=RESUMED_NOTES[runner].format(batch_id=batch_id))
    return ExitCode.OK if runner else ExitCode.PAUSED


RESUMED_NOTES: dict[str | None, str] = {
    "same process": "resumed; the process that ran it continues",
    "flow run": "resumed; its flow run in Prefect continues as soon as a worker has taken it",
    "server": "resumed; a server continues within a minute",
    None: "still paused, as no server or worker has it; to continue here: batchline run --resume {batch_id}",
}
"""Notes about who continues with a resumed batch."""


@app.command
def delete(batch_id: BatchId, /, *, yes: Flag = False, json: JsonFlag = False) -> int:
    """Delete a batch with its output and error files; a running one is cancelled first. Its input file is kept.

    Parameters
    ----------
    yes:
        Do not ask for confirmation.
    """
    client = Batchline(origin="cli")
    batch = client.batches.record(batch_id)
    if not yes and not sys.stdin.isatty():
        raise InvalidInput(f"there is no terminal to confirm the deletion of {batch.id}: add --yes", param="yes")
    question = f"delete {batch.id} ({batch.status}, {batch.completed:,} answers)? [y/N] "
    if not yes and stderr_console().input(question, markup=False).strip().lower() not in {"y", "yes"}:
        print_note("nothing was deleted")
        return ExitCode.BAD_INPUT
    with Progress() as progress:
        progress.doing(f"deleting {batch_id}")
        client.batches.delete(batch_id)
    print_deleted("batch", batch_id, json=json)
    return ExitCode.OK


def _print_batch(batch: BatchResponse, *, json: bool, next_step: str) -> None:
    """Print the batch as JSON, or its id on standard output and its state and next step on standard error."""
    print_object(batch, json=json, result=batch.id, note=join_parts(batch.status, next_step))
