"""`batchline simulate`: run the simulator."""

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from batchline.cli.console import print_note
from batchline.models.errors import InvalidInput
from batchline.simulate import SimulatorOptions, serve


class SimulateOptions(SimulatorOptions):
    """Options of the simulator, with a memorable default port."""

    port: int = Field(default=8000, ge=0, le=65_535, description="0 chooses a free one.")


def simulate(*, options: Annotated[SimulateOptions, Parameter(name="*")] = SimulateOptions()) -> None:  # noqa: B008 - frozen
    """Serve an OpenAI-compatible simulator on this machine until Ctrl-C; its answers are made up.

    Shares are of all requests, from 0 to 1; durations are in seconds. With the same seed the same requests get the
    same answers. GET /simulator/counters returns counts of requests, POST /simulator/reset resets them.
    """

    def print_urls(url: str) -> None:
        print_note(f"serving at {url}")
        print_note(f"counters at {url.removesuffix('/v1')}/simulator/counters")
        print_note(f"try OPENAI_BASE_URL={url} batchline run FILE", is_whole=True)

    try:
        serve(options, on_ready=print_urls)
    except OSError as error:
        raise InvalidInput(
            f"cannot listen at {options.host} port {options.port}: {(error.strerror or str(error)).lower()}; "
            "choose another with --port"
        ) from error
