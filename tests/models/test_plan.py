"""Sizes of chunks, and the chunks of retries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.models.plan import Chunk, InputRange, Plan, max_chunk_requests, plan_retry


@pytest.mark.parametrize(
    ("total", "requests"),
    [(1, 1_000), (2_500, 1_000), (2_501, 1_001), (50_000, 10_500), (1_000_000, 15_500)],
)
def test_chunk_size_is_derived_from_batch_size_within_limits(total, requests):
    assert max_chunk_requests(total) == requests


@given(st.integers(1, 50_000))
def test_batch_of_up_to_50000_requests_has_at_most_five_chunks(total):
    assert -(-total // max_chunk_requests(total)) <= 5


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan over stretches of a few lines and bytes each."""
    chunks, at, line = [], 3, 1
    for index in range(draw(st.integers(1, 4))):
        stretches, requests = [], 0
        for lines, size in draw(
            st.lists(st.tuples(st.integers(1, 4), st.integers(1, 90)), min_size=1, max_size=5)
        ):
            stretches.append(InputRange(at, at + size, line, f"digest of {line}"))
            at, line, requests = at + size, line + lines, requests + lines
        chunks.append(Chunk(index=index, requests=requests, ranges=stretches))
    return Plan(
        batch_id="batch-1",
        input_key="files/file-1/content.jsonl",
        size_bytes=at,
        sha256="of all",
        endpoint="/v1/chat/completions",
        total=line - 1,
        chunks=chunks,
        models=["m"],
    )


@given(plans(), st.data(), st.integers(1, 6), st.integers(1, 200))
def test_retry_plan_has_each_line_once_with_its_input_ranges(plan, data, requests, size):
    lines = sorted(data.draw(st.sets(st.integers(1, plan.total), min_size=1)))

    retried = plan_retry(plan, lines, max_requests=requests, max_bytes=size)

    known = [stretch for chunk in plan.chunks for stretch in chunk.ranges]
    assert [line for chunk in retried.chunks for line in chunk.only] == lines
    assert retried.total == len(lines) == sum(chunk.requests for chunk in retried.chunks)
    for index, chunk in enumerate(retried.chunks):
        assert (chunk.index, chunk.first_line, chunk.requests) == (index, chunk.only[0], len(chunk.only))
        homes = [[each for each in known if each.first_line <= line][-1] for line in chunk.only]
        assert chunk.ranges == sorted(set(homes), key=known.index)
        one = len(chunk.ranges) == 1
        assert one or chunk.requests <= requests
        assert one or sum(each.end - each.start for each in chunk.ranges) <= size
