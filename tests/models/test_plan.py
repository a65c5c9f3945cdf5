"""How many requests a chunk holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.models.plan import chunk_requests


@pytest.mark.parametrize(
    ("total", "requests"),
    [(1, 1_000), (2_500, 1_000), (2_501, 1_001), (50_000, 10_500), (1_000_000, 10_500)],
)
def test_a_chunk_is_a_fifth_of_the_batch_and_a_stretch_within_bounds(total, requests):
    assert chunk_requests(total) == requests


@given(st.integers(1, 50_000))
def test_a_batch_of_up_to_fifty_thousand_has_at_most_five_chunks(total):
    assert -(-total // chunk_requests(total)) <= 5
