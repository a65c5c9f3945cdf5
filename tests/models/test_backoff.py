"""Delays before the next attempt."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from batchline.models.backoff import backoff_s


class AtMost(Random):
    """Draws the upper bound each time."""

    def uniform(self, a, b):
        return b


class AtLeast(Random):
    """Draws the lower bound each time."""

    def uniform(self, a, b):
        return a


@given(st.integers(1, 10_000), st.floats(0.001, 100), st.floats(0.001, 1_000), st.integers())
def test_backoff_is_between_zero_and_cap(attempt, base_s, cap_s, seed):
    assert 0 <= backoff_s(attempt, base_s=base_s, cap_s=cap_s, random=Random(seed)) <= cap_s


def test_backoff_upper_bound_doubles_up_to_cap():
    waits = [backoff_s(attempt, base_s=0.5, cap_s=10, random=AtMost()) for attempt in range(1, 8)]
    assert waits == [0.5, 1, 2, 4, 8, 10, 10]


def test_backoff_with_full_jitter_can_be_zero():
    assert backoff_s(5, base_s=0.5, cap_s=10, random=AtLeast()) == 0


def test_backoff_with_same_seed_is_equal():
    assert len({backoff_s(3, base_s=1, cap_s=60, random=Random(7)) for _ in range(2)}) == 1
