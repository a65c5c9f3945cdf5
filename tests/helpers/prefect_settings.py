"""Temporary settings of Prefect in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.context import _temporary_global_settings_context, get_settings_context
from prefect.settings import PREFECT_API_URL, temporary_settings


@contextmanager
def using_prefect(api: str) -> Iterator[None]:
    """Make flows in this process, and the threads that they start, use the server with that API."""
    with (
        temporary_settings({PREFECT_API_URL: api}),
        # As Prefect's own harness does: settings of a context are not those of new threads.
        _temporary_global_settings_context(get_settings_context()),
    ):
        yield
