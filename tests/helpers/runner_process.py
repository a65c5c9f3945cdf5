"""Processes of their own that run a batch, to be killed and paused."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

from batchline.models.settings import Settings, to_environment

# What writes parts is loaded beforehand, as in a process that has run for longer: it takes as long as a flush.
RUN_LOCAL = """
import sys
import pyarrow.parquet
from batchline.engine.services import open_services
from batchline.engine.pipeline import run_local
run_local(open_services(), sys.argv[1])
"""


TIMEOUT_S = 30.0


class RunnerProcess:
    """A process that runs the batch with those settings."""

    def __init__(self, settings: Settings, batch_id: str, *, program: str = RUN_LOCAL, **environment: str) -> None:
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, batch_id],
            env={**os.environ, **to_environment(settings), **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._told,
            stderr=subprocess.STDOUT,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """`kill -9`."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._told.close()

    def pause(self) -> None:
        """Stop it as a suspended machine or a starved container stops: with everything open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def wait(self) -> tuple[int, str]:
        """Its exit status and all that it wrote."""
        status = self._process.wait(TIMEOUT_S)
        self._told.seek(0)
        return status, self._told.read().decode()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
