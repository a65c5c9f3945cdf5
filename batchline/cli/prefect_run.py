"""Runs a batch as a Prefect flow in this process, on a server that runs or on a temporary one."""

import os

from rich.console import Console

from batchline.models.errors import BatchlineError, Interrupted
from batchline.steps.engine import Engine

DEFAULTS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}
"""Prefect settings that suit a person at a terminal; what is set already stays."""


def run_flow(engine: Engine, batch_id: str, console: Console) -> None:
    """Run the flow for the batch; raises what stopped it, or `BatchEnded` as the flow does."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    console.print("starting Prefect …")
    from prefect.settings import get_current_settings  # noqa: PLC0415 - takes a second, so after the message

    from batchline.flows.process_batch import process_batch, using_engine  # noqa: PLC0415 - as above

    server = get_current_settings().api.url
    console.print(
        f"Prefect server: {server}"
        if server
        else "Prefect server: a temporary one, which takes about 20 s to start; `prefect server start` in another "
        "terminal and PREFECT_API_URL=http://127.0.0.1:4200/api make this quick, --local does without",
        markup=False,
    )
    with using_engine(engine):
        state = process_batch(batch_id=batch_id, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BatchlineError):
        raise result
    if isinstance(result, BaseException):
        raise Interrupted(f"the flow run ended {state.name}: {result}") from result
