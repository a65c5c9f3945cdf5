"""`batchline simulate`: run the simulator."""

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field, ValidationError

from batchline.cli.console import print_note
from batchline.models.errors import InvalidInput
from batchline.simulate import SimulatorOptions, serve

FAULT_HELP = (
    "A kind of fault and its share of all requests, as KIND=SHARE; repeat it for more. See docs/faults.md."
)


class SimulateOptions(SimulatorOptions):
    """Options of the simulator, with a memorable default port."""

    port: int = Field(default=8000, ge=0, le=65_535, description="0 chooses a free one.")
    # A flag of its own reads them as KIND=SHARE.
    faults: Annotated[dict[str, float], Parameter(parse=False)] = Field(default={})


def simulate(
    *,
    fault: Annotated[
        tuple[str, ...], Parameter(name="--fault", help=FAULT_HELP, negative="", show_default=False)
    ] = (),
    options: Annotated[SimulateOptions, Parameter(name="*")] = SimulateOptions(),  # noqa: B008 - frozen
) -> None:
    """Serve an OpenAI-compatible simulator on this machine until Ctrl-C; its answers are made up.

    Shares are of all requests, from 0 to 1; durations are in seconds. With the same seed the same requests get the
    same answers. A prompt with simulate:fault=KIND gets that fault, one with simulate:once=KIND gets it only the
    first time. GET /simulator/counters returns counts of requests, POST /simulator/reset resets them.
    """
    options = options.model_copy(update={"faults": _read_faults(fault)})

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


def _read_faults(texts: tuple[str, ...]) -> dict[str, float]:
    """Return the share of each kind; raises `InvalidInput`."""
    faults = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            faults[name] = float(share)
            SimulatorOptions(faults={name: faults[name]})
        except ValidationError as error:
            raise InvalidInput(
                f"--fault {text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
            ) from error
        except ValueError as error:
            raise InvalidInput(f"--fault {text}: write KIND=SHARE, such as html=0.1") from error
    return faults
