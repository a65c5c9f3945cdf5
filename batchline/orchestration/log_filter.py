"""What a flow run's log says of our own errors: each once, and with a traceback only where that helps."""

from __future__ import annotations

import logging

from batchline.models.errors import BatchEnded, BatchlineError, Conflict, InvalidInput, NotFound
from batchline.orchestration.events import report_stopped

USER_ERRORS = (InvalidInput, NotFound, Conflict)
"""Errors of those who started the run: their messages say what to do, and a traceback says no more."""

UNEXPECTED_MESSAGE = "Engine execution exited with unexpected exception"
"""What Prefect's engine says at the end of a run of a deployment, of an error that it has told before."""


HOOK_MESSAGE = f"ook {report_stopped.__name__!r} "
"""In what Prefect's engine says before and after it calls our hook."""


def install_log_filter() -> None:
    """Keep from the log of this process's flow runs what makes a batch that failed look like a fault of ours."""
    logging.getLogger("prefect.flow_runs").addFilter(_FILTER)


class _UserErrorFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Drop what is told already, and tracebacks that nobody needs."""
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
