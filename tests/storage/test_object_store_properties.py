"""Properties of any key and any range."""

import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchline.storage.objects.store import STREAM_BLOCK_BYTES, ObjectStore

on_one_store = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
"""Examples share a store, so each must bring keys of its own."""

LETTERS = st.characters(
    codec="utf-8",
    exclude_categories=["Cc", "Cn", "Cs"],  # XML, in which S3 is asked to delete, has no room for some of them
    exclude_characters="/\\",  # SeaweedFS takes a backslash for a slash
)
NAMES = st.text(LETTERS | st.sampled_from("%?#+ &=~"), min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."} and not name.startswith(".tmp-")
)


@on_one_store
@given(names=st.lists(NAMES, min_size=1, max_size=4), data=st.binary(max_size=100))
def test_object_with_any_key_is_listed_and_read(store: ObjectStore, names: list[str], data: bytes) -> None:
    top = uuid.uuid4().hex
    key = "/".join([top, *names])

    store.put(key, data)
    total = store.concat([key, key], f"{top}-joined/{names[0]}")

    assert [(info.key, info.size_bytes) for info in store.list_objects(top)] == [(key, len(data))]
    assert store.list_objects(top)[0] == store.info(key)
    assert store.read(key) == data
    assert store.read(f"{top}-joined/{names[0]}") == data + data
    assert total == 2 * len(data)
    store.delete([key])
    assert store.list_objects(top) == []


@on_one_store
@given(
    data=st.binary(max_size=300),
    start=st.integers(0, 320),
    length=st.none() | st.integers(0, 320),
    block_bytes=st.integers(1, 50) | st.just(STREAM_BLOCK_BYTES),
)
def test_range_of_object_equals_python_slice(
    store: ObjectStore, data: bytes, start: int, length: int | None, block_bytes: int
) -> None:
    key = uuid.uuid4().hex
    store.put(key, data)
    end = None if length is None else min(len(data), start + length)

    assert store.read(key, start, end) == data[start:end]
    assert b"".join(store.stream(key, start, end, block_bytes)) == data[start:end]
