"""Filters flow run logs: batchline's errors are logged once, and with a traceback only if that helps."""

from __future__ import annotations

import logging

from batchline.models.errors import BatchEnded, BatchlineError, Conflict, InvalidInput, NotFound
from batchline.orchestration.events import report_stopped

USER_ERRORS = (InvalidInput, NotFound, Conflict)
"""Errors caused by the run's input: the message says what to do, a traceback adds nothing."""

UNEXPECTED_MESSAGE = "Engine execution exited with unexpected exception"
"""Prefect's message at the end of a deployment run for an error that it has already logged."""


HOOK_MESSAGE = f"ook {report_stopped.__name__!r} "
"""Part of Prefect's messages before and after it calls our hook ("Running hook", "Hook … finished")."""


def install_log_filter() -> None:
    """Install the filter in this process, so that a failed batch does not look like a bug in the logs."""
    logging.getLogger("prefect.flow_runs").addFilter(_FILTER)


class _UserErrorFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Drop repeated messages and useless tracebacks."""
        if HOOK_MESSAGE in str(record.msg):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, BatchlineError):
            return True
        if isinstance(error, BatchEnded) or record.msg == UNEXPECTED_MESSAGE:
            return False
        if isinstance(error, USER_ERRORS):
            record.exc_info = None
        return True


_FILTER = _UserErrorFilter()
