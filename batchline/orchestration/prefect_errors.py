"""Translates failures of Prefect's client into messages for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from batchline.models.errors import BatchlineError, Interrupted


@contextmanager
def interrupted(before: str = "") -> Iterator[None]:
    """Raise failures of Prefect's client in the block as `Interrupted`; `before` starts the message."""
    try:
        yield
    except BatchlineError:
        raise
    except Exception as error:  # Prefect's client raises many kinds
        raise Interrupted(f"{before}{describe_error(error)}") from error


def describe_error(error: Exception) -> str:
    """Return a description of the failure; if authentication failed, name the setting to change."""
    if isinstance(error, PrefectHTTPStatusError) and error.response.status_code in {401, 403}:
        return _describe_auth_failure()
    return f"Prefect failed: {type(error).__name__}: {error}"


def _describe_auth_failure() -> str:
    api = get_current_settings().api
    if api.auth_string or api.key:
        variable = "PREFECT_API_AUTH_STRING" if api.auth_string else "PREFECT_API_KEY"
        return f"the Prefect server at {api.url} refuses what {variable} holds; set it to what the server knows"
    return (
        f"the Prefect server at {api.url} lets nobody in without credentials; set PREFECT_API_AUTH_STRING to the "
        "server's PREFECT_SERVER_API_AUTH_STRING (or PREFECT_API_KEY, at Prefect Cloud)"
    )
