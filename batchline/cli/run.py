"""`batchline run`: run a file of requests to its results."""

import time
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

from batchline.cli.console import print_json, stderr_console
from batchline.cli.exit_codes import ExitCode, exit_code_of_batch
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.cli.signals import interrupt_on_signal
from batchline.cli.summary import print_summary
from batchline.cli.target import Target, select_target
from batchline.client import Batchline
from batchline.engine.lease import wait_for_lease
from batchline.engine.services import Services
from batchline.engine.window_notice import closed_window_notice
from batchline.models.batches import validate_metadata
from batchline.models.errors import (
    BatchEnded,
    BatchlineError,
    Conflict,
    Interrupted,
    InvalidInput,
    LeaseLost,
    StorageFault,
)
from batchline.models.settings import Settings, load_settings
from batchline.models.status import TERMINAL_STATUSES
from batchline.report.report_data import report_of
from batchline.storage.records.store import BatchRecord, open_records


class _RunArguments(NamedTuple):
    """Validated properties of a new batch."""

    file: Path
    endpoint: str | None
    window: str
    metadata: dict[str, str] | None


def run(
    file: Path | None = None,
    /,
    *,
    resume: str | None = None,
    endpoint: str | None = None,
    window: str | None = None,
    metadata: dict[str, str] | None = None,
    local: Flag = False,
    stand_in: Flag = False,
    json: Flag = False,
) -> int:
    """Run a batch file to its end, say what came of it, and return the exit status.

    Parameters
    ----------
    file:
        JSONL of requests, plain or as .gz or .zst.
    resume:
        Id of a batch to go on with, instead of a file.
    endpoint:
        The endpoint of every request, such as /v1/embeddings; by default the first request's own.
    window:
        How long the batch may take, such as 90m, 24h or 7d; by default 24h.
    metadata:
        Up to 16 pairs of your own, each as --metadata.KEY VALUE.
    local:
        Run the same steps without Prefect.
    stand_in:
        Send to a stand-in upstream on this machine, whose answers mean nothing.
    json:
        Print the batch with its analytics as JSON, last and alone on standard output.
    """
    settings = load_settings()
    arguments = _parse_arguments(file, resume, endpoint, window, metadata, settings)
    if resume is not None:
        _require_batch(settings, resume)
    with select_target(settings, stand_in=stand_in, resumed=resume is not None) as target:
        client = Batchline(target.settings, origin="cli")
        services = client.services
        with Progress(stderr_console()) as progress:
            batch = client.batches.record(_create_batch(client, arguments, progress) if arguments else str(resume))
            is_over = batch.status in TERMINAL_STATUSES
            error = None if is_over else _run_batch(services, batch, progress, local=local)
        try:
            record = services.records.get_batch(batch.id)
        except StorageFault as fault:
            _print_resume_hint(batch.id, error or fault, target, local=local)
            return ExitCode.STOPPED
    response = record.to_response(include_analytics=True)
    if error is not None and response.status not in TERMINAL_STATUSES:
        _print_resume_hint(batch.id, error, target, local=local)
    if json:
        print_json(response.model_dump_json())
    elif response.status in TERMINAL_STATUSES:
        print_summary(response, report_of(services.store, batch.id), services, is_retried=bool(record.generation))
    return exit_code_of_batch(response)


def _parse_arguments(
    file: Path | None,
    resume: str | None,
    endpoint: str | None,
    window: str | None,
    metadata: dict[str, str] | None,
    settings: Settings,
) -> _RunArguments | None:
    """Return the new batch's properties, or None to resume one; raises `InvalidInput` for bad arguments."""
    if file is None and resume is None:
        raise InvalidInput(
            "nothing to run: give a FILE of requests, as in `batchline run requests.jsonl`, or --resume BATCH_ID; "
            "`batchline run --help` lists the options"
        )
    if file is not None and resume is not None:
        raise InvalidInput("give either a FILE to run or --resume BATCH_ID, and not both")
    if file is None:
        options = {"--endpoint": endpoint, "--window": window, "--metadata": metadata}
        if extra_options := [name for name, value in options.items() if value is not None]:
            raise InvalidInput(
                f"a batch that exists keeps what it was made with; leave out {', '.join(extra_options)}"
            )
        return None
    if endpoint is not None:
        settings.require_endpoint(endpoint)
    settings.require_window_s(window or "24h")
    try:
        validate_metadata(metadata)
    except ValueError as error:
        raise InvalidInput(str(error), param="metadata") from None
    return _RunArguments(file, endpoint, window or "24h", metadata)


def _require_batch(settings: Settings, batch_id: str) -> None:
    """Raise `NotFound` before an upstream or a server is started or asked for."""
    records = open_records(settings)
    try:
        records.get_batch(batch_id)
    finally:
        records.close()


def _create_batch(client: Batchline, arguments: _RunArguments, progress: Progress) -> str:
    """Store the file, create a batch for it, and return the batch's id."""
    progress.doing(f"reading in {arguments.file.name}")
    file = client.files.create(file=arguments.file)
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=arguments.endpoint,
        completion_window=arguments.window,
        metadata=arguments.metadata,
        via=None,
    )
    stderr_console().print(f"batch: {batch.id} of {file.filename}, {file.bytes:,} bytes", markup=False)
    return batch.id


def _run_batch(
    services: Services, batch: BatchRecord, progress: Progress, *, local: bool
) -> BatchlineError | None:
    """Run the batch with progress shown; returns the error that stopped it, or None."""
    try:
        with interrupt_on_signal(batch.id):
            wait_for_lease(services, batch, progress.doing)
            if notice := closed_window_notice(batch, services.settings, now=time.time()):
                stderr_console().print(f"batch {batch.id}: {notice}", markup=False, soft_wrap=True)
            progress.follow(batch.id)
            if local:
                from batchline.engine.pipeline import run_local  # noqa: PLC0415 - next to its alternative

                run_local(services, batch.id)
            else:
                from batchline.cli.prefect_run import run_flow  # noqa: PLC0415 - Prefect takes seconds to import

                run_flow(services, batch.id, progress)
    except BatchEnded:
        return None
    except KeyboardInterrupt:
        return Interrupted("interrupted while nothing was being sent")
    except LeaseLost as error:
        return error
    except Conflict:
        raise
    except BatchlineError as error:
        return error
    except OSError as error:
        return Interrupted(f"the machine failed: {error}")
    return None


def _print_resume_hint(batch_id: str, error: BatchlineError, target: Target, *, local: bool) -> None:
    flags = (" --local" if local else "") + (" --stand-in" if target.is_simulator else "")
    stderr_console().print(f"[red]stopped:[/] {escape(str(error))}")
    stderr_console().print(f"go on with: batchline run --resume {batch_id}{flags}", markup=False, soft_wrap=True)
