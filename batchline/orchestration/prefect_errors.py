"""Handles failures of Prefect's client: as errors with messages for users, or in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from batchline.models.errors import BatchlineError, Interrupted

log = logging.getLogger(__name__)


@contextmanager
def interrupted(before: str = "") -> Iterator[None]:
    """Raise failures of Prefect's client in the block as `Interrupted`; `before` starts the message."""
    try:
        yield
    except BatchlineError:
        raise
    except Exception as error:  # Prefect's client raises many kinds
        raise Interrupted(f"{before}{describe_error(error)}") from error


@contextmanager
def log_failures(consequence: str, level: int = logging.WARNING) -> Iterator[None]:
    """Log failures of Prefect's client in the block, for what must not stop a batch, and end the block."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - Prefect's client raises many kinds
        log.log(level, "%s: %s", consequence, error)


def describe_error(error: Exception) -> str:
    """Return a description of the failure; if authentication failed, name the setting to change."""
    if not isinstance(error, PrefectHTTPStatusError) or error.response.status_code not in {401, 403}:
        return f"Prefect failed: {type(error).__name__}: {error}"
    api = get_current_settings().api
    if api.auth_string or api.key:
        variable = "PREFECT_API_AUTH_STRING" if api.auth_string else "PREFECT_API_KEY"
        return f"the Prefect server at {api.url} refuses {variable}; set it to what the server expects"
    return (
        f"the Prefect server at {api.url} requires credentials; set PREFECT_API_AUTH_STRING to the server's "
        "PREFECT_SERVER_API_AUTH_STRING (or PREFECT_API_KEY, at Prefect Cloud)"
    )
