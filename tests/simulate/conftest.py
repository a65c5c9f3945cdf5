"""A stand-in that does nothing special, for all tests of a file."""

from collections.abc import Iterator

import pytest

from batchline.simulate import Simulator


@pytest.fixture(scope="module")
def shared_stand_in() -> Iterator[Simulator]:
    with Simulator() as stand_in:
        yield stand_in


@pytest.fixture
def plain(shared_stand_in: Simulator) -> Simulator:
    """A stand-in without faults or limits, its counters at nothing."""
    shared_stand_in.reset()
    return shared_stand_in
