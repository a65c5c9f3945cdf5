"""Object stores, local and on a real S3 server."""

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from helpers.concurrency import in_threads
from helpers.storage_servers import S3Server

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.settings import load_settings
from batchline.storage.objects.select import open_objects
from batchline.storage.objects.store import ObjectStore

MIB = 2**20
LARGE = random.Random(7).randbytes(20 * MIB)


def contents(store: ObjectStore) -> dict[str, bytes]:
    """Everything that is there."""
    return {info.key: store.read(info.key) for info in store.list_objects("")}


# Reading what was written


@pytest.mark.parametrize("size", [0, 1, 100_000, 9 * MIB], ids=["empty", "a byte", "small", "large"])
def test_put_object_is_read_back(size: int, store: ObjectStore) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    store.put("some/key.jsonl", data)

    assert store.read("some/key.jsonl") == data
    assert store.info("some/key.jsonl").size_bytes == size


PIECES = {"none": [], "empty ones": [b"", b""], "small": [b"a\n", b"", b"b\n"], "large": [b"x" * 3 * MIB] * 7}


@pytest.mark.parametrize("name", PIECES)
def test_written_object_joins_its_blocks(name: str, store: ObjectStore) -> None:
    with store.writer("key") as file:
        for piece in PIECES[name]:
            file.write(piece)

    assert store.read("key") == b"".join(PIECES[name])


@pytest.mark.parametrize("size", [0, 10])
@pytest.mark.parametrize(("start", "end"), [(0, 11), (9, 11), (10, 11), (20, 30)])
@pytest.mark.parametrize("read", ["read", "stream"])
def test_range_beyond_the_object_raises_fault(
    read: str, start: int, end: int, size: int, store: ObjectStore
) -> None:
    store.put("key", b"0" * size)

    with pytest.raises(StorageFault, match=str(end)):
        b"".join([*iter_of(store, read)("key", start, end)])


def iter_of(store: ObjectStore, read: str) -> Callable[..., list[bytes]]:
    return lambda *range_: [*store.stream(*range_)] if read == "stream" else [store.read(*range_)]


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (1, None), (9 * MIB, None), (20 * MIB, None), (5, 5), (0, 8 * MIB), (3 * MIB, 19 * MIB + 1)],
)
def test_stream_yields_the_range_in_blocks(start: int, end: int | None, store: ObjectStore) -> None:
    store.put("key", LARGE)

    blocks = [*store.stream("key", start, end, block_bytes=2**16)]

    assert b"".join(blocks) == LARGE[start:end]
    assert max(map(len, blocks), default=0) <= 8 * MIB


def test_stream_of_empty_object_has_no_bytes(store: ObjectStore) -> None:
    store.put("key", b"")

    assert b"".join(store.stream("key")) == b""


def test_stream_closed_early_leaves_the_object_intact(store: ObjectStore) -> None:
    store.put("key", b"x" * 20 * MIB)

    stream = store.stream("key")
    next(stream)
    stream.close()

    assert store.info("key").size_bytes == 20 * MIB


def test_overwritten_object_has_new_version(store: ObjectStore) -> None:
    store.put("key", b"old")
    old = store.info("key")
    store.put("key", b"new")

    assert store.read("key") == b"new"
    assert store.info("key").version != old.version


def test_version_of_unchanged_object_stays_the_same(store: ObjectStore) -> None:
    store.put("key", b"old")

    assert store.info("key") == store.info("key") == store.list_objects("")[0]


@pytest.mark.system
def test_object_is_readable_by_another_store_with_same_settings(s3_server: S3Server) -> None:
    for settings in (load_settings(), s3_server.settings()):
        open_objects(settings).put("a/b", b"text")

        assert contents(open_objects(settings)) == {"a/b": b"text"}


def test_object_uri_ends_with_its_key(store: ObjectStore) -> None:
    assert store.uri("a/b.jsonl") == f"{store.root}/a/b.jsonl"


# What is not there

NEEDS_AN_OBJECT: dict[str, Callable[[ObjectStore, str], object]] = {
    "info": lambda store, key: store.info(key),
    "read": lambda store, key: store.read(key),
    "read a range": lambda store, key: store.read(key, 2, 4),
    "read an empty range": lambda store, key: store.read(key, 2, 2),
    "stream": lambda store, key: [*store.stream(key)],
    "stream a range": lambda store, key: [*store.stream(key, 2, 4)],
    "concat": lambda store, key: store.concat([key], "target"),
    "concat behind another": lambda store, key: store.concat(["there", key], "target"),
}


@pytest.mark.parametrize("key", ["missing", "folder", "folder/there/below"])
@pytest.mark.parametrize("need", NEEDS_AN_OBJECT)
def test_missing_key_is_not_found(need: str, key: str, store: ObjectStore) -> None:
    store.put("there", b"0123456789")
    store.put("folder/there", b"0123456789")

    with pytest.raises(NotFound, match=key):
        NEEDS_AN_OBJECT[need](store, key)
    assert contents(store).keys() == {"there", "folder/there"}


@pytest.mark.parametrize(("key", "there"), [("a/b", True), ("a", False), ("a/b/c", False), ("b", False)])
def test_exists_is_true_only_for_objects(key: str, there: bool, store: ObjectStore) -> None:
    store.put("a/b", b"")

    assert store.exists(key) is there


OUTSIDE = ["", "/", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "a/./b", "a//b", "a/", "a/.tmp-1", "a\0b"]

TAKES_A_KEY: dict[str, Callable[[ObjectStore, str], object]] = {
    **NEEDS_AN_OBJECT,
    "exists": lambda store, key: store.exists(key),
    "put": lambda store, key: store.put(key, b""),
    "put a large one": lambda store, key: store.put(key, b"x" * 9 * MIB),
    "put_if_absent": lambda store, key: store.put_if_absent(key, b""),
    "concat to": lambda store, key: store.concat(["there"], key),
    "delete": lambda store, key: store.delete(["there", key]),
    "uri": lambda store, key: store.uri(key),
}


@pytest.mark.parametrize("take", TAKES_A_KEY)
def test_key_outside_the_root_is_rejected(take: str, store: ObjectStore) -> None:
    store.put("there", b"0123456789")

    for key in OUTSIDE:
        with pytest.raises(InvalidInput, match="is not a key"):
            TAKES_A_KEY[take](store, key)


@pytest.mark.parametrize("prefix", ["..", "a/../..", "/etc", "a//b", "./a"])
def test_prefix_outside_the_root_is_rejected(prefix: str, store: ObjectStore) -> None:
    with pytest.raises(InvalidInput, match="is not a key"):
        store.list_objects(prefix)


# Whole or not at all


class Stop(Exception):
    """An error raised within a writer."""


def write_and_raise(store: ObjectStore, key: str, size: int) -> None:
    with store.writer(key) as file:
        file.write(b"x" * size)
        raise Stop


@pytest.mark.parametrize("size", [0, 10, 20 * MIB], ids=["nothing", "little", "much"])
def test_writer_that_raises_leaves_nothing(size: int, store: ObjectStore) -> None:
    with pytest.raises(Stop):
        write_and_raise(store, "folder/key", size)

    assert contents(store) == {}
    assert not store.exists("folder/key")


@pytest.mark.parametrize("size", [0, 10, 20 * MIB], ids=["nothing", "little", "much"])
def test_writer_that_raises_keeps_the_old_object(size: int, store: ObjectStore) -> None:
    store.put("key", b"old")
    before = store.info("key")

    with pytest.raises(Stop):
        write_and_raise(store, "key", size)

    assert store.read("key") == b"old"
    assert store.info("key") == before


def test_object_is_invisible_until_its_writer_closes(store: ObjectStore) -> None:
    with store.writer("key") as file:
        for _ in range(5):
            file.write(b"x" * 4 * MIB)
        assert (store.exists("key"), store.list_objects("")) == (False, [])

    assert store.info("key").size_bytes == 20 * MIB


def test_reader_never_sees_partial_object(store: ObjectStore) -> None:
    done = threading.Event()

    def write(number: int) -> None:
        try:
            for text in (b"a", b"b", b"a", b"b"):
                with store.writer("key") as file:
                    for _ in range(9):
                        file.write(text * MIB)
        finally:
            done.set()

    seen: set[tuple[int, bytes]] = set()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, 0)
        while not done.is_set():
            if store.exists("key"):
                data = store.read("key")
                seen.add((len(data), data.replace(data[:1], b"")))
        writing.result()

    assert seen <= {(9 * MIB, b"")}


def test_stream_never_mixes_two_versions(store: ObjectStore) -> None:
    store.put("key", b"a" * 30 * MIB)

    stream = store.stream("key")
    seen = {next(stream)[:1]}
    store.put("key", b"b" * 30 * MIB)
    with suppress(StorageFault):  # so may a store say that what is being read is gone
        for block in stream:
            seen |= {block[:1], block[-1:]}

    assert seen == {b"a"}


# Only one may be first


def test_put_if_absent_writes_missing_object(store: ObjectStore) -> None:
    assert store.put_if_absent("folder/key", b"mine") is True
    assert contents(store) == {"folder/key": b"mine"}


@pytest.mark.parametrize("data", [b"", b"mine"], ids=["empty", "with bytes"])
def test_put_if_absent_keeps_existing_object(data: bytes, store: ObjectStore) -> None:
    store.put("key", b"")

    assert store.put_if_absent("key", data) is False
    assert contents(store) == {"key": b""}


def test_concurrent_put_if_absent_has_one_winner(store: ObjectStore) -> None:
    won = in_threads(20, lambda number: store.put_if_absent("claim", str(number).encode()))

    assert won.count(True) == 1
    assert won.count(False) == 19
    assert contents(store) == {"claim": str(won.index(True)).encode()}


# Joining


JOINS = {
    "none": [],
    "one": [10],
    "one that is empty": [0],
    "empty ones": [0, 0, 0],
    "small": [3, 0, 5, 1],
    "large": [5 * MIB, 6 * MIB, 5 * MIB],
    "large, the last one small": [5 * MIB, 5 * MIB, 1],
    "large with empty ones between": [0, 5 * MIB, 0, 5 * MIB, 0],
    "large and small mixed": [5 * MIB, 1, 9 * MIB, 3],
    "one large": [20 * MIB],
}


@pytest.mark.parametrize("name", JOINS)
def test_concat_joins_objects_in_order(name: str, store: ObjectStore) -> None:
    parts = [bytes([97 + number]) * size for number, size in enumerate(JOINS[name])]
    keys = [f"parts/{number} of {name}" for number in range(len(parts))]
    for key, data in zip(keys, parts, strict=True):
        store.put(key, data)
    store.put("target", b"what was there before")

    assert store.concat(keys, "target") == sum(JOINS[name])
    assert store.read("target") == b"".join(parts)
    assert [store.read(key) for key in keys] == parts


@pytest.mark.parametrize("size", [1, 5 * MIB], ids=["small", "large"])
def test_failed_concat_keeps_the_old_target(size: int, store: ObjectStore) -> None:
    store.put("target", b"old")
    store.put("part", b"x" * size)

    with pytest.raises(NotFound, match="missing"):
        store.concat(["part", "part", "missing"], "target")

    assert store.read("target") == b"old"
    assert {info.key for info in store.list_objects("")} == {"part", "target"}


# Finding and deleting


def test_find_in_empty_store_is_empty(store: ObjectStore) -> None:
    assert (store.list_objects(""), store.list_objects("a/b")) == ([], [])


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("", ["a", "a/b", "a/b/c", "a/b/d", "a/bc", "a/b.d", "b/a/b"]),
        ("a", ["a/b", "a/b/c", "a/b/d", "a/bc", "a/b.d"]),
        ("a/b", ["a/b/c", "a/b/d"]),
        ("a/b/", ["a/b/c", "a/b/d"]),
        ("a/b/c", []),
        ("b", ["b/a/b"]),
        ("c", []),
    ],
)
def test_find_lists_objects_below_the_prefix(
    prefix: str, found: list[str], store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    keys = ["a", "a/b", "a/b/c", "a/b/d", "a/bc", "a/b.d", "b/a/b"]
    if "local" in request.node.name:  # a name is a file or a folder there
        keys = [key for key in keys if key not in {"a", "a/b"}]
        found = [key for key in found if key in keys]
    for key in keys:
        store.put(key, key.encode())

    assert [info.key for info in store.list_objects(prefix)] == sorted(found)
    assert [info.size_bytes for info in store.list_objects(prefix)] == [len(key) for key in sorted(found)]


def put_all(store: ObjectStore, keys: list[str]) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda key: store.put(key, b"1"), keys)) == [None] * len(keys)


def test_over_1000_objects_are_listed_in_order_and_deleted(store: ObjectStore) -> None:
    keys = [f"many/{number:04}.jsonl" for number in range(1_050)]
    put_all(store, keys)
    store.put("other", b"")

    assert [info.key for info in store.list_objects("many")] == keys
    store.delete(keys)
    assert [info.key for info in store.list_objects("")] == ["other"]


def test_delete_removes_only_the_given_objects(store: ObjectStore) -> None:
    for key in ("a/b", "a/c", "d"):
        store.put(key, key.encode())

    store.delete(iter(["a/b", "d"]))

    assert contents(store) == {"a/c": b"a/c"}


@pytest.mark.parametrize("keys", [[], ["missing"], ["a"], ["a/b/c"], ["missing/below", "a/b"], ["a/b", "a/b"]])
def test_delete_of_missing_object_is_ignored(keys: list[str], store: ObjectStore) -> None:
    store.put("a/b", b"1")

    store.delete(keys)

    assert store.exists("a/b") is ("a/b" not in keys)


def test_deleted_object_can_be_rewritten(store: ObjectStore) -> None:
    for text, _ in itertools.product((b"1", b"2"), range(2)):
        store.put("folder/key", text)
        store.delete(["folder/key"])
    store.put("folder/key", b"3")

    assert contents(store) == {"folder/key": b"3"}
