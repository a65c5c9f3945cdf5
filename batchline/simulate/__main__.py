"""Run the simulator with options from the first line of standard input, as `Simulator` starts its process."""

import sys

from batchline.simulate.options import SimulatorOptions
from batchline.simulate.server import serve


def _print_url(url: str) -> None:
    """Report the server's URL to the parent process."""
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


serve(SimulatorOptions.model_validate_json(sys.stdin.readline()), on_ready=_print_url, exit_with_parent=True)
