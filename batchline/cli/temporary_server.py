"""A Prefect server for the duration of one command.

Prefect can start such a server itself, but in the command's process group: there, the Ctrl-C that asks a batch to
stop ends the server first, and the flow run cannot report its end. This server has its own session and ends with
the command, however that ends.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from typing import IO

from batchline.models.errors import Interrupted

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0


class TemporaryServer:
    """A starting server; `wait_until_ready` waits for it."""

    def __init__(self) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        # It listens at once: early connections wait, and no other program can take the port.
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", __name__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        # As late as possible, so that Prefect's threads can still send events and logs.
        atexit.register(self.stop)

    def wait_until_ready(self) -> None:
        """Return once the server responds; raises `Interrupted` with the last line of its log if it does not."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/health", timeout=START_TIMEOUT_S):
                return
        except (urllib.error.URLError, OSError) as error:
            self.stop()
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            raise Interrupted(
                f"the temporary Prefect server did not start: {lines[-1][:300] if lines else error}. Continue "
                "with --local, which needs none, or with PREFECT_API_URL set to a running server"
            ) from error

    def stop(self) -> None:
        """Stop the server."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=STOP_TIMEOUT_S)
            return
        self._process.kill()
        self._process.wait()


def serve_socket(descriptor: int) -> None:
    """Serve on the listening socket with that descriptor until standard input closes."""
    import uvicorn  # noqa: PLC0415 - for the server's own process
    from prefect.server.api.server import create_app  # noqa: PLC0415 - as above, and it takes seconds

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve_socket(int(sys.argv[1]))
