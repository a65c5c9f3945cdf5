"""Run a batch as a Prefect flow in this process, with the configured server or a temporary one."""

import logging
import os
import re

from batchline.cli.console import print_note
from batchline.cli.progress import Progress
from batchline.cli.temporary_server import TemporaryServer
from batchline.client import Batchline
from batchline.models.errors import InvalidInput
from batchline.models.settings import to_environment

PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
"""Prefect settings for interactive use; those that are set already stay."""

QUIET_LOGGING = {"PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL"}

CLOUD_API = re.compile("//api[.]([^/]+)/api/accounts/([^/]+)/workspaces/([^/]+)")
"""The API address of Prefect Cloud, whose pages have another address."""


def run_flow(client: Batchline, batch_id: str, progress: Progress) -> None:
    """Run the flow for the batch; raises the error that stopped it, or `BatchEnded` like the flow."""
    progress.doing("loading Prefect")
    _set_prefect_environment()
    if client.settings.task_runner != "threads":  # sender processes read the settings from their environment
        os.environ.update(to_environment(client.settings))
    server = _start_server_if_needed()
    progress.doing("starting a temporary Prefect server" if server else "starting the flow run")
    from prefect import tags  # noqa: PLC0415 - it takes a second

    from batchline.flows.process_batch import run_batch  # noqa: PLC0415 - it takes a second
    from batchline.orchestration.prefect_errors import interrupted  # noqa: PLC0415 - as above

    if server is not None:
        # No other process uses a temporary server, so there is no one to share quotas with.
        client = client.derive(share_budgets=False)
        server.wait_until_ready()
        progress.doing("starting the flow run")
    with interrupted(), tags(*_run_tags()):
        run_batch(client, batch_id)


def _set_prefect_environment(*, quiet: bool = True) -> None:
    """Set the variables that Prefect reads at import; `quiet` hides its log unless a level is set."""
    is_log_level_set = "PREFECT_LOGGING_LEVEL" in os.environ or os.environ.get("PREFECT_DEBUG_MODE")
    for name, value in {**PREFECT_DEFAULTS, **(QUIET_LOGGING if quiet else {})}.items():
        os.environ.setdefault(name, value)
    if quiet and not is_log_level_set:
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not record.name.startswith("prefect"))


def _run_tags() -> tuple[str, ...]:
    """Return the tag for crash detection if heartbeats are frequent enough for it."""
    from prefect.settings import get_current_settings  # noqa: PLC0415 - Prefect takes a second

    from batchline.orchestration.deployments import RUN_TAG  # noqa: PLC0415 - as above
    from batchline.orchestration.events import HEARTBEAT_S  # noqa: PLC0415 - as above

    heartbeat_s = get_current_settings().flows.heartbeat_frequency
    return (RUN_TAG,) if heartbeat_s is not None and heartbeat_s <= HEARTBEAT_S else ()


def configured_server_url(*, quiet: bool = True) -> str:
    """Return the configured Prefect server's address; raises `InvalidInput` if there is none."""
    _set_prefect_environment(quiet=quiet)
    from batchline.orchestration.run_needed import server_url  # noqa: PLC0415 - Prefect takes a second

    return server_url()


def flow_run_url(flow_run_id: str) -> str | None:
    """Return the address of the flow run's page if the environment names the server, without loading Prefect."""
    ui_url = os.environ.get("PREFECT_UI_URL")
    if not ui_url and (api_url := os.environ.get("PREFECT_API_URL")):
        ui_url = CLOUD_API.sub(r"//app.\1/account/\2/workspace/\3", api_url.rstrip("/").removesuffix("/api"))
    return f"{ui_url.rstrip('/')}/runs/flow-run/{flow_run_id}" if ui_url else None


def _start_server_if_needed() -> TemporaryServer | None:
    """Print the server's address, and start a temporary one if none is configured."""
    from prefect.context import refresh_global_settings_context  # noqa: PLC0415 - Prefect takes a second
    from prefect.settings import get_current_settings  # noqa: PLC0415 - as above

    settings = get_current_settings()
    if settings.api.url:
        print_note(f"Prefect server: {settings.api.url}")
        return None
    if not settings.server.ephemeral.enabled:
        raise InvalidInput(
            "no Prefect server is configured and temporary ones are off: set PREFECT_API_URL, or add --local"
        )
    print_note(
        "Prefect server: a temporary one, which takes 5 to 30 s to start. Faster: --local, which needs none, "
        "or a permanent server, by `prefect server start` and PREFECT_API_URL=http://127.0.0.1:4200/api"
    )
    server = TemporaryServer()
    os.environ["PREFECT_API_URL"] = server.url
    refresh_global_settings_context()
    return server
