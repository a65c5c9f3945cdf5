"""`batchline simulate`: the stand-in upstream."""

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from batchline.simulate import SimulatorOptions, serve


def simulate(options: Annotated[SimulatorOptions | None, Parameter(name="*")] = None) -> None:
    """Serve an OpenAI-compatible stand-in on this machine until Ctrl-C; its answers mean nothing."""
    console = Console(highlight=False)
    chosen = options or SimulatorOptions(port=8000)

    def ready(url: str) -> None:
        console.print(f"serving at {url}; try OPENAI_BASE_URL={url} batchline run FILE", markup=False)

    serve(chosen, ready=ready)
