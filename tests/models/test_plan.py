"""How many requests a chunk holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.models.plan import chunk_requests


@pytest.mark.parametrize(
    ("total", "requests"),
    [(1, 500), (10_000, 500), (10_001, 501), (50_000, 2_500), (100_000, 5_000), (1_000_000, 5_000)],
)
def test_a_chunk_is_a_twentieth_of_the_batch_within_bounds(total, requests):
    assert chunk_requests(total) == requests


@given(st.integers(1, 100_000))
def test_a_batch_of_up_to_a_hundred_thousand_has_at_most_twenty_chunks(total):
    assert -(-total // chunk_requests(total)) <= 20
