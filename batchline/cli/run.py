"""`batchline run`: run a file of requests to its results."""

import sys
from pathlib import Path

from rich.markup import escape

from batchline.cli.console import print_json, print_note, stderr_console
from batchline.cli.exit_codes import ExitCode, exit_code_of_batch
from batchline.cli.options import BatchOptionFlags, EndpointOption, Flag, LocalFlag, MetadataOption, StandInFlag
from batchline.cli.progress import Progress
from batchline.cli.signals import interrupt_on_signal
from batchline.cli.summary import print_summary
from batchline.cli.target import Target, select_target
from batchline.client import Batchline
from batchline.models.batches import validate_metadata
from batchline.models.errors import (
    BatchEnded,
    BatchlineError,
    BatchPaused,
    Conflict,
    Interrupted,
    InvalidInput,
    LeaseLost,
    StorageFault,
)
from batchline.models.options import BatchOptions
from batchline.models.settings import Settings, load_settings
from batchline.models.status import TERMINAL_STATUSES

DEFAULT_WINDOW = "24h"


def run(
    file: Path | None = None,
    /,
    *,
    resume: str | None = None,
    endpoint: EndpointOption = None,
    window: str | None = None,
    metadata: MetadataOption = None,
    options: BatchOptionFlags = None,
    local: LocalFlag = False,
    stand_in: StandInFlag = False,
    json: Flag = False,
) -> int:
    """Run a batch file to its end, print its outcome, and return the exit status.

    Parameters
    ----------
    file:
        JSONL of requests, plain or as .gz or .zst.
    resume:
        Id of a batch to continue, instead of a file.
    window:
        Maximum duration of the batch, such as 90m, 24h or 7d; by default 24h.
    json:
        Print the batch with its analytics as JSON, last and alone on standard output.
    """
    settings = load_settings()
    _check_arguments(settings, file, resume, endpoint, window, metadata, options)
    if resume is not None:  # before a server or a simulator is started
        Batchline(settings, origin="cli").batches.record(resume)
    with select_target(settings, stand_in=stand_in, resumed=resume is not None) as target:
        client = Batchline(target.settings, origin="cli")
        with Progress() as progress:
            batch_id = str(resume)
            if file is not None:
                batch_id = _create_batch(client, file, endpoint, window, metadata, options, progress)
            batch = client.batches.record(batch_id)
            if resume and batch.pause:
                client.batches.end_pause(batch_id)
            error = (
                None if batch.status in TERMINAL_STATUSES else _run_batch(client, batch_id, progress, local=local)
            )
        error = _run_while_resumed(client, batch_id, error, local=local, can_ask=not json)
        try:
            batch = client.batches.record(batch_id)
        except StorageFault as fault:
            _print_resume_hint(batch_id, error or fault, target, local=local)
            return ExitCode.STOPPED
    if error is not None and batch.status not in TERMINAL_STATUSES:
        _print_resume_hint(batch_id, error, target, local=local)
    if json:
        print_json(batch.to_response(include_analytics=True).model_dump_json())
    elif batch.status in TERMINAL_STATUSES:
        print_summary(client, batch)
    return exit_code_of_batch(batch)


def _check_arguments(
    settings: Settings,
    file: Path | None,
    resume: str | None,
    endpoint: str | None,
    window: str | None,
    metadata: dict[str, str] | None,
    options: BatchOptions | None,
) -> None:
    """Raise `InvalidInput` for bad arguments before anything is stored or started."""
    if file is None and resume is None:
        raise InvalidInput(
            "nothing to run: give a FILE of requests, as in `batchline run requests.jsonl`, or --resume BATCH_ID; "
            "`batchline run --help` lists the options"
        )
    if file is not None and resume is not None:
        raise InvalidInput("give either a FILE to run or --resume BATCH_ID, and not both")
    if file is None:
        values: dict[str, object] = {"endpoint": endpoint, "window": window, "metadata": metadata}
        values |= options.given() if options else {}
        flags = [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None]
        if flags:
            raise InvalidInput(f"a resumed batch keeps its options; remove {', '.join(flags)}")
        return
    if endpoint is not None:
        settings.require_endpoint(endpoint)
    settings.require_window_s(window or DEFAULT_WINDOW)
    try:
        validate_metadata(metadata)
    except ValueError as error:
        raise InvalidInput(str(error), param="metadata") from None


def _create_batch(
    client: Batchline,
    path: Path,
    endpoint: str | None,
    window: str | None,
    metadata: dict[str, str] | None,
    options: BatchOptions | None,
    progress: Progress,
) -> str:
    """Store the file, create a batch for it, and return the batch's id."""
    progress.doing(f"reading {path.name}")
    file = client.files.create(file=path)
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window=window or DEFAULT_WINDOW,
        metadata=metadata,
        options=options,
        via=None,
    )
    print_note(f"batch: {batch.id} of {file.filename}, {file.bytes:,} bytes")
    return batch.id


def _run_batch(client: Batchline, batch_id: str, progress: Progress, *, local: bool) -> BatchlineError | None:
    """Run the batch with progress shown; returns the error that stopped it, or None."""
    try:
        with interrupt_on_signal(client, batch_id):
            if notice := client.batches.prepare_run(batch_id, progress.doing):
                print_note(f"batch {batch_id}: {notice}", is_whole=True)
            progress.follow(lambda: client.batches.meter(batch_id))
            if local:
                client.batches.run(batch_id)
            else:
                from batchline.cli.prefect_run import run_flow  # noqa: PLC0415 - Prefect takes seconds to import

                run_flow(client, batch_id, progress)
    except BatchEnded:
        return None
    except KeyboardInterrupt:
        return Interrupted("interrupted while nothing was being sent")
    except OSError as error:
        return Interrupted(f"the machine failed: {error}")
    except BatchlineError as error:
        if isinstance(error, Conflict) and not isinstance(error, LeaseLost):
            raise
        return error
    return None


def _run_while_resumed(
    client: Batchline, batch_id: str, error: BatchlineError | None, *, local: bool, can_ask: bool
) -> BatchlineError | None:
    """Run the batch again as long as it is paused and the person at the terminal resumes it."""
    while isinstance(error, BatchPaused) and can_ask and sys.stdin.isatty():
        if stderr_console().input(f"{error}\ncontinue? [y/N] ", markup=False).strip().lower() not in {"y", "yes"}:
            break
        client.batches.end_pause(batch_id)
        with Progress() as progress:
            error = _run_batch(client, batch_id, progress, local=local)
    return error


def _print_resume_hint(batch_id: str, error: BatchlineError, target: Target, *, local: bool) -> None:
    flags = (" --local" if local else "") + (" --stand-in" if target.is_simulator else "")
    word = "[yellow]paused:[/]" if isinstance(error, BatchPaused) else "[red]stopped:[/]"
    stderr_console().print(f"{word} {escape(str(error))}")
    print_note(f"to continue: batchline run --resume {batch_id}{flags}", is_whole=True)
