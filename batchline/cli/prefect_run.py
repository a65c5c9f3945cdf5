"""Runs a batch as a Prefect flow in this process, on a server that runs or on a temporary one."""

import logging
import os
import re
from dataclasses import replace

from batchline.cli.console import messages
from batchline.cli.prefect_server import TemporaryServer
from batchline.cli.progress import Progress
from batchline.models.errors import InvalidInput
from batchline.models.settings import environment_of
from batchline.steps.engine import Engine

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
"""Prefect's variables that suit a person at a terminal; what is set already stays."""

QUIET = {"PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL"}

CLOUD = re.compile("//api[.]([^/]+)/api/accounts/([^/]+)/workspaces/([^/]+)")
"""The API of Prefect Cloud, whose pages have another address."""


def run_flow(engine: Engine, batch_id: str, progress: Progress) -> None:
    """Run the flow for the batch; raises what stopped it, or `BatchEnded` as the flow does."""
    progress.doing("loading Prefect")
    _prepare()
    if engine.settings.task_runner != "threads":  # the processes that will send are told by their environment
        os.environ.update(environment_of(engine.settings))
    server = _server()
    progress.doing("starting a temporary Prefect server" if server else "starting the flow run")
    from prefect import tags  # noqa: PLC0415 - it takes a second

    from batchline.flows.process_batch import run_batch  # noqa: PLC0415 - it takes a second
    from batchline.orchestration.refusals import interrupted  # noqa: PLC0415 - as above

    if server is not None:
        # Nobody else knows the server, so there is nobody to share budgets with.
        alone = engine.settings.model_copy(update={"share_budgets": False})
        engine = replace(engine, settings=alone)
        server.ready()
        progress.doing("starting the flow run")
    with interrupted(), tags(*_tags()):
        run_batch(engine, batch_id)


def _prepare(*, quiet: bool = True) -> None:
    """Set what Prefect reads when it is imported; `quiet` keeps its log for its server and for those who ask."""
    asked = "PREFECT_LOGGING_LEVEL" in os.environ or os.environ.get("PREFECT_DEBUG_MODE")
    for name, value in {**DEFAULTS, **(QUIET if quiet else {})}.items():
        os.environ.setdefault(name, value)
    if quiet and not asked:
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not record.name.startswith("prefect"))


def _tags() -> tuple[str, ...]:
    """The tag by which a run that sends heartbeats often enough is soon known to be dead."""
    from prefect.settings import get_current_settings  # noqa: PLC0415 - Prefect takes a second

    from batchline.orchestration.deployments import TAG  # noqa: PLC0415 - as above
    from batchline.orchestration.events import HEARTBEAT_S  # noqa: PLC0415 - as above

    between_s = get_current_settings().flows.heartbeat_frequency
    return (TAG,) if between_s is not None and between_s <= HEARTBEAT_S else ()


def configured_server(*, quiet: bool = True) -> str:
    """The address of the Prefect server that is configured; raises `InvalidInput` where none is."""
    _prepare(quiet=quiet)
    from batchline.orchestration.due import server_url  # noqa: PLC0415 - Prefect takes a second

    return server_url()


def page_of(flow_run_id: str) -> str | None:
    """The address of the flow run's page, where the environment names the server; Prefect itself is not asked."""
    pages = os.environ.get("PREFECT_UI_URL")
    if not pages and (api := os.environ.get("PREFECT_API_URL")):
        pages = CLOUD.sub(r"//app.\1/account/\2/workspace/\3", api.rstrip("/").removesuffix("/api"))
    return f"{pages.rstrip('/')}/runs/flow-run/{flow_run_id}" if pages else None


def _server() -> TemporaryServer | None:
    """Say which server it will be; a temporary one is started where none is configured."""
    from prefect.context import refresh_global_settings_context  # noqa: PLC0415 - Prefect takes a second
    from prefect.settings import get_current_settings  # noqa: PLC0415 - as above

    settings = get_current_settings()
    if settings.api.url:
        messages().print(f"Prefect server: {settings.api.url}", markup=False)
        return None
    if not settings.server.ephemeral.enabled:
        raise InvalidInput(
            "no Prefect server is configured and temporary ones are off: set PREFECT_API_URL, or add --local"
        )
    messages().print(
        "Prefect server: a temporary one, which takes 5 to 30 s to start. Quicker: --local, which does without, "
        "or a server that stays, by `prefect server start` and PREFECT_API_URL=http://127.0.0.1:4200/api",
        markup=False,
    )
    server = TemporaryServer()
    os.environ["PREFECT_API_URL"] = server.url
    refresh_global_settings_context()
    return server
