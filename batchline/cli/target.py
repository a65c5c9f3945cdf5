"""Select the upstreams of a run: those of the settings, or a simulator."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from batchline.cli.console import print_note
from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings
from batchline.models.upstreams import Upstream


class Target(NamedTuple):
    """The settings with the upstreams of a run, and True if they are the simulator."""

    settings: Settings
    is_simulator: bool


@contextlib.contextmanager
def select_target(settings: Settings, *, stand_in: bool, resumed: bool) -> Iterator[Target]:
    """Print the upstreams; run a simulator for the block if requested or if nothing is configured.

    Raises `InvalidInput` to resume a batch with nothing configured: its remaining requests would get meaningless
    answers.
    """
    if settings.all_upstreams and not stand_in:
        for upstream in settings.all_upstreams:
            print_note(f"upstream: {upstream.name} at {upstream.base_url}")
        yield Target(settings, is_simulator=False)
        return
    if resumed and not stand_in:
        raise InvalidInput(
            "no upstream is configured to continue this batch: set OPENAI_BASE_URL and OPENAI_API_KEY as they "
            "were, or add --stand-in if the batch ran against the simulator"
        )
    from batchline.simulate import Simulator, SimulatorOptions  # noqa: PLC0415 - only for the demo

    # About as fast as a small model, so that there is something to see.
    options = SimulatorOptions(latency="lognormal", latency_s=0.4, latency_sigma=0.6, first_byte_share=0.5)
    with Simulator(options) as simulator:
        advice = "" if stand_in else "; set OPENAI_BASE_URL to send to a real one"
        print_note(f"upstream: a simulator on this machine, whose answers are made up{advice}")
        upstream = Upstream(name="stand-in", base_url=simulator.base_url)
        yield Target(settings.model_copy(update={"upstreams": [upstream]}), is_simulator=True)
