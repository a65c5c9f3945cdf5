"""The simulator in its own process, which ends with the block or with its parent."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from typing import Any, Self

from batchline.models.errors import BatchlineError
from batchline.simulate.options import SimulatorOptions

CONTROL_TIMEOUT_S = 20.0


class Simulator:
    """A running simulator: `with Simulator(options) as simulator: … simulator.base_url …`."""

    def __init__(self, options: SimulatorOptions | None = None) -> None:
        self.options = options or SimulatorOptions()
        self.base_url = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it listens."""
        options = self.options.model_dump(mode="json")
        if self.options.api_key is not None:
            options["api_key"] = self.options.api_key.get_secret_value()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "batchline.simulate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018, S101 - pipes
        # On a pipe, since any user of the machine can read arguments, and the options contain a key.
        with contextlib.suppress(BrokenPipeError):  # it has died: the missing URL reports that
            self._process.stdin.write(json.dumps(options) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline().strip()
        if not line.startswith("http"):
            self.stop()
            raise BatchlineError("the simulator did not start; see its message above")
        self.base_url = line

    def stop(self) -> None:
        """Kill the server's process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None

    def counters(self) -> dict[str, Any]:
        """Return the server's counters since its start or the last reset."""
        return self._call_control("GET", "counters")

    def reset(self) -> None:
        """Reset the counters."""
        self._call_control("POST", "reset")

    def _call_control(self, method: str, name: str) -> dict[str, Any]:
        url = f"{self.base_url.removesuffix('/v1')}/simulator/{name}"
        # The server is local: HTTP_PROXY must not apply.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, method=method), timeout=CONTROL_TIMEOUT_S) as response:  # noqa: S310
            counters: dict[str, Any] = json.load(response)
        return counters
