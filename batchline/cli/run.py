"""`batchline run`: a file of requests, from here to its results."""

import time
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

from batchline.cli.console import messages, print_json
from batchline.cli.exits import Exit, exit_of_batch
from batchline.cli.interrupt import clean_interrupt
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.cli.summary import print_summary
from batchline.cli.upstream import Target, target_of
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest, checked_metadata
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
from batchline.models.status import TERMINAL
from batchline.steps.engine import Engine, open_engine
from batchline.steps.hold import wait_for_lease
from batchline.steps.intake import create_batch, store_input_file
from batchline.steps.reports import report_of
from batchline.steps.validate import endpoint_of
from batchline.steps.windows import closed_window_notice
from batchline.storage.records import BatchRecord, open_records


class _Wanted(NamedTuple):
    """What a new batch is to be; checked before anything is stored."""

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
    wanted = _wanted(file, resume, endpoint, window, metadata, settings)
    if resume is not None:
        _check_known(settings, resume)
    with target_of(settings, stand_in=stand_in, resumed=resume is not None) as target:
        engine = open_engine(target.settings)
        with Progress(messages()) as progress:
            batch = _created(engine, wanted, progress) if wanted else engine.records.get_batch(str(resume))
            error = None if batch.status in TERMINAL else _run(engine, batch, progress, local=local)
        try:
            record = engine.records.get_batch(batch.id)
        except StorageFault as fault:
            _say_how_to_go_on(batch.id, error or fault, target, local=local)
            return Exit.STOPPED
    ended = record.to_response(include_analytics=True)
    if error is not None and ended.status not in TERMINAL:
        _say_how_to_go_on(batch.id, error, target, local=local)
    if json:
        print_json(ended.model_dump_json())
    elif ended.status in TERMINAL:
        print_summary(ended, report_of(engine.store, batch.id), engine, is_retried=bool(record.generation))
    return exit_of_batch(ended)


def _wanted(
    file: Path | None,
    resume: str | None,
    endpoint: str | None,
    window: str | None,
    metadata: dict[str, str] | None,
    settings: Settings,
) -> _Wanted | None:
    """The new batch that the arguments ask for, none where they name one; raises `InvalidInput` for bad ones."""
    if file is None and resume is None:
        raise InvalidInput(
            "nothing to run: give a FILE of requests, as in `batchline run requests.jsonl`, or --resume BATCH_ID; "
            "`batchline run --help` lists the options"
        )
    if file is not None and resume is not None:
        raise InvalidInput("give either a FILE to run or --resume BATCH_ID, and not both")
    if file is None:
        options = {"--endpoint": endpoint, "--window": window, "--metadata": metadata}
        if given := [name for name, value in options.items() if value is not None]:
            raise InvalidInput(f"a batch that exists keeps what it was made with; leave out {', '.join(given)}")
        return None
    if endpoint is not None:
        settings.checked_endpoint(endpoint)
    settings.checked_window_s(window or "24h")
    try:
        checked_metadata(metadata)
    except ValueError as error:
        raise InvalidInput(str(error), param="metadata") from None
    return _Wanted(file, endpoint, window or "24h", metadata)


def _check_known(settings: Settings, batch_id: str) -> None:
    """Raise `NotFound` before anything else is asked for."""
    records = open_records(settings)
    try:
        records.get_batch(batch_id)
    finally:
        records.close()


def _created(engine: Engine, wanted: _Wanted, progress: Progress) -> BatchRecord:
    """Store the file and record a batch for it."""
    progress.doing(f"reading in {wanted.file.name}")
    stored = store_input_file(engine, wanted.file)
    endpoint = wanted.endpoint or endpoint_of(engine.store.stream(stored.key), settings=engine.settings)
    request = CreateBatchRequest(
        input_file_id=stored.id, endpoint=endpoint, completion_window=wanted.window, metadata=wanted.metadata
    )
    batch = create_batch(engine, request, origin=BatchDwExtResponse(source="cli"))
    messages().print(f"batch: {batch.id} of {batch.input_filename}, {stored.size_bytes:,} bytes", markup=False)
    return batch


def _run(engine: Engine, batch: BatchRecord, progress: Progress, *, local: bool) -> BatchlineError | None:
    """Run the batch with progress shown; the error that stopped it, if one did."""
    try:
        with clean_interrupt(batch.id):
            wait_for_lease(engine, batch, progress.doing)
            if notice := closed_window_notice(batch, engine.settings, now=time.time()):
                messages().print(f"batch {batch.id}: {notice}", markup=False, soft_wrap=True)
            progress.follow(batch.id)
            if local:
                from batchline.steps.local import run_local  # noqa: PLC0415 - beside its alternative

                run_local(engine, batch.id)
            else:
                from batchline.cli.prefect_run import run_flow  # noqa: PLC0415 - Prefect takes seconds to import

                run_flow(engine, batch.id, progress)
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


def _say_how_to_go_on(batch_id: str, error: BatchlineError, target: Target, *, local: bool) -> None:
    flags = (" --local" if local else "") + (" --stand-in" if target.stand_in else "")
    messages().print(f"[red]stopped:[/] {escape(str(error))}")
    messages().print(f"go on with: batchline run --resume {batch_id}{flags}", markup=False, soft_wrap=True)
