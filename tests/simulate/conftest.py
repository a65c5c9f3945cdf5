"""A simulator that does nothing special, for all tests of a file."""

from collections.abc import Iterator

import pytest

from batchline.simulate import Simulator


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def plain_simulator(shared_simulator: Simulator) -> Simulator:
    """A simulator without faults or limits, its counters at nothing."""
    shared_simulator.reset()
    return shared_simulator
