"""`batchline run`: a file of requests, from here to its results."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

from cyclopts import Parameter
from rich.console import Console

from batchline.cli.exits import exit_of_batch
from batchline.cli.progress import progress_of
from batchline.cli.show import report_of
from batchline.cli.summary import print_json, print_summary
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest
from batchline.models.errors import BatchEnded, BatchlineError, InvalidInput
from batchline.models.settings import Settings, load_settings
from batchline.models.status import TERMINAL
from batchline.models.upstreams import Upstream
from batchline.steps.engine import Engine, open_engine
from batchline.steps.hold import held
from batchline.steps.intake import create_batch, store_input_file
from batchline.steps.validate import endpoint_of

Flag = Annotated[bool, Parameter(negative="")]


class _Job(NamedTuple):
    engine: Engine
    batch_id: str
    local: bool
    console: Console


def run(
    file: Path | None = None,
    *,
    resume: str | None = None,
    endpoint: str | None = None,
    window: str = "24h",
    metadata: Annotated[dict[str, str] | None, Parameter(name="--metadata")] = None,
    local: Flag = False,
    stand_in: Flag = False,
    json: Flag = False,
) -> int:
    """Run a batch file to its end and say what came of it.

    Exit status: 0 all requests succeeded, 3 some failed, 4 none succeeded, 5 cancelled or expired, 2 bad usage
    or an input that does not validate, 6 stopped by a fault or by Ctrl-C (go on with --resume).

    Parameters
    ----------
    file:
        JSONL of requests, plain or as .gz or .zst.
    resume:
        Id of a batch to go on with, instead of a file.
    endpoint:
        The endpoint of every request; the first request's own where it is not given.
    window:
        How long the batch may take: <n>m, <n>h or <n>d.
    metadata:
        Up to 16 pairs of your own, as --metadata.key value.
    local:
        Run the same steps without Prefect.
    stand_in:
        Send to a stand-in upstream on this machine, whose answers mean nothing.
    json:
        Print the batch with its analytics as JSON, last and alone on standard output.
    """
    if (file is None) == (resume is None):
        raise InvalidInput("give either a FILE to run or --resume BATCH_ID")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _upstream(console, stand_in=stand_in, resumed=resume is not None) as settings:
        engine = open_engine(settings)
        batch_id = resume or _created(engine, file or Path(), endpoint, window, metadata)
        job = _Job(engine, batch_id, local, console)
        error = _run(job)
        batch = engine.records.get_batch(batch_id).to_response(include_analytics=True)
    if error is not None and batch.status not in TERMINAL:
        _say_how_to_go_on(job, error, stand_in=stand_in)
    if json:
        print_json(batch)
    elif batch.status in TERMINAL:
        print_summary(batch, report_of(engine, batch_id), engine)
    return exit_of_batch(batch)


@contextlib.contextmanager
def _upstream(console: Console, *, stand_in: bool, resumed: bool) -> Iterator[Settings]:
    """The settings, with a stand-in as the upstream where that is asked for or none is configured."""
    settings = load_settings()
    if settings.servers and not stand_in:
        for server in settings.servers:
            console.print(f"upstream: {server.name} at {server.base_url}", markup=False)
        yield settings
        return
    if resumed and not stand_in:
        raise InvalidInput(
            "no upstream is configured to go on with this batch: set OPENAI_BASE_URL and OPENAI_API_KEY as they "
            "were, or say --stand-in if the batch ran against the stand-in"
        )
    from batchline.simulate import Simulator, SimulatorOptions  # noqa: PLC0415 - only for the demo

    with Simulator(SimulatorOptions()) as simulator:
        console.print(
            "upstream: a stand-in on this machine, whose answers mean nothing"
            + ("" if stand_in else " (set OPENAI_BASE_URL to send to a real one)")
        )
        server = Upstream(name="stand-in", base_url=simulator.base_url)
        yield settings.model_copy(update={"upstreams": [server]})


def _created(
    engine: Engine, file: Path, endpoint: str | None, window: str, metadata: dict[str, str] | None
) -> str:
    """Store the file, record a batch for it, and return the batch's id."""
    stored = store_input_file(engine, file)
    blocks = engine.store.stream(stored.key)
    request = CreateBatchRequest(
        input_file_id=stored.id,
        endpoint=endpoint or endpoint_of(blocks, settings=engine.settings),
        completion_window=window,
        metadata=metadata,
    )
    return create_batch(engine, request, origin=BatchDwExtResponse(source="cli")).id


def _run(job: _Job) -> BatchlineError | None:
    """Run the batch with progress shown; the error that stopped it, if one did."""
    try:
        with _clean_interrupt(job), progress_of(job.engine, job.batch_id, job.console):
            if job.local:
                from batchline.steps.local import run_local  # noqa: PLC0415 - beside its alternative

                run_local(job.engine, job.batch_id)
            else:
                from batchline.cli.prefect_run import run_flow  # noqa: PLC0415 - Prefect takes seconds to import

                run_flow(job.engine, job.batch_id, job.console)
    except BatchEnded:
        return None
    except BatchlineError as error:
        return error
    return None


@contextlib.contextmanager
def _clean_interrupt(job: _Job) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) stop the run cleanly; a second one has its usual effect."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        hold = held(job.batch_id)
        for each, handler in before.items():
            signal.signal(each, handler)
        if hold is None:
            raise KeyboardInterrupt
        job.console.print("stopping: requests under way get a moment to finish (Ctrl-C again to kill)")
        hold.interrupt(f"stopped by {signal.Signals(number).name}")

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _say_how_to_go_on(job: _Job, error: BatchlineError, *, stand_in: bool) -> None:
    flags = (" --local" if job.local else "") + (" --stand-in" if stand_in else "")
    job.console.print(f"[red]stopped:[/] {str(error).replace('[', chr(92) + '[')}")
    job.console.print(f"go on with: batchline run --resume {job.batch_id}{flags}", markup=False)
    sys.stderr.flush()
