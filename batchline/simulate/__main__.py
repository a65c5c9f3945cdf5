"""Runs the stand-in with the options on standard input's first line: how `Simulator` starts its process."""

import sys

from batchline.simulate.options import SimulatorOptions
from batchline.simulate.server import serve


def _print_url(url: str) -> None:
    """Tell the parent process where the server is."""
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


serve(SimulatorOptions.model_validate_json(sys.stdin.readline()), on_ready=_print_url, exit_with_parent=True)
