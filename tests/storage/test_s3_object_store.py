"""S3 object store: prefixes, credentials, multipart uploads, and misbehaving servers."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from helpers.forwarding_proxy import (
    ForwardingProxy,
    Handler,
    Rule,
    forward,
    forwarding_proxy,
    hang_up,
    only_first,
    respond_with,
    truncate_body,
)
from helpers.storage_servers import SECRET, S3Server, free_ports

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.ids import new_batch_id, new_file_id
from batchline.models.settings import load_settings
from batchline.storage.objects import layout
from batchline.storage.objects.select import open_objects
from batchline.storage.objects.store import ObjectStore

MIB = 2**20


def write(store: ObjectStore, key: str, *pieces: bytes) -> None:
    with store.writer(key) as file:
        for piece in pieces:
            file.write(piece)


WORK: dict[str, Callable[[ObjectStore], object]] = {
    "info": lambda store: store.info("key"),
    "exists": lambda store: store.exists("key"),
    "read": lambda store: store.read("key"),
    "read a range": lambda store: store.read("key", 1, 2),
    "stream": lambda store: [*store.stream("key")],
    "put": lambda store: store.put("key", b"text"),
    "write": lambda store: write(store, "key", b"text"),
    "write much": lambda store: write(store, "key", *[b"x" * MIB] * 9),
    "put_if_absent": lambda store: store.put_if_absent("key", b"text"),
    "concat": lambda store: store.concat(["key", "key"], "target"),
    "find": lambda store: store.list_objects(""),
    "delete": lambda store: store.delete(["key"]),
}


# The address


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix"])
def test_url_without_bucket_is_rejected(url: str) -> None:
    with pytest.raises(InvalidInput, match="no bucket") as raised:
        open_objects(load_settings(storage_url=url))
    assert raised.value.param == "storage_url"


@pytest.mark.system
@pytest.mark.parametrize(("mine", "other"), [("top", "top2"), ("top", "to"), ("top", "top/below"), ("a/b", "a")])
def test_prefix_isolates_its_objects(mine: str, other: str, s3_server: S3Server) -> None:
    mine_store = open_objects(s3_server.settings(f"apart/{mine}"))
    other_store = open_objects(s3_server.settings(f"apart/{other}/"))
    mine_store.put("mine", b"1")
    other_store.put("other", b"2")

    try:
        assert not mine_store.exists("other")
        assert "other" not in {info.key for info in mine_store.list_objects("")}
        assert other_store.read("other") == b"2"
    finally:
        mine_store.delete(["mine"])
        other_store.delete(["other"])


@pytest.mark.system
def test_store_without_prefix_uses_the_whole_bucket(s3_server: S3Server) -> None:
    store = open_objects(s3_server.settings(storage_url=f"s3://{s3_server.bucket}"))
    store.put("at-the-top/key", b"1")

    assert [info.key for info in store.list_objects("at-the-top")] == ["at-the-top/key"]
    assert "at-the-top/key" in {info.key for info in store.list_objects("")}
    assert store.uri("at-the-top/key") == f"s3://{s3_server.bucket}/at-the-top/key"
    store.delete(["at-the-top/key"])


# Who may


@pytest.fixture(scope="module")
def refused(s3_server: S3Server) -> ObjectStore:
    """A store that has the wrong secret."""
    return open_objects(s3_server.settings("refused", s3_secret_access_key=f"not-{SECRET}"))


@pytest.mark.system
@pytest.mark.parametrize("work", WORK)
def test_wrong_secret_raises_fault_without_showing_it(work: str, refused: ObjectStore) -> None:
    with pytest.raises(StorageFault, match=r"access is refused .* check the access key") as raised:
        WORK[work](refused)

    assert SECRET not in str(raised.value)
    assert "refused" in str(raised.value)


@pytest.mark.system
def test_unknown_access_key_raises_fault(s3_server: S3Server) -> None:
    store = open_objects(s3_server.settings(s3_access_key_id="stranger"))

    with pytest.raises(StorageFault, match="check the access key"):
        store.put("key", b"text")


# How it is done


def parts_of(store: ObjectStore, key: str) -> int:
    """Return the number of parts that the object was uploaded in, as in its ETag."""
    return int(store.info(key).version.partition("-")[2] or 0)


class Proxied(NamedTuple):
    """A store that reaches the S3 server by way of another, whose rule a test may set."""

    store: ObjectStore
    server: ForwardingProxy


@pytest.fixture(scope="module")
def one_proxied(s3_server: S3Server) -> Iterator[Proxied]:
    with forwarding_proxy(s3_server.url) as server:
        yield Proxied(open_objects(s3_server.settings("behind", s3_endpoint_url=server.url)), server)


@pytest.fixture
def proxied(one_proxied: Proxied) -> Iterator[Proxied]:
    yield one_proxied
    one_proxied.server.rule = forward
    one_proxied.store.delete([info.key for info in one_proxied.store.list_objects("")])


@pytest.mark.system
def test_concat_of_large_parts_copies_on_the_server(proxied: Proxied) -> None:
    store, server = proxied
    for key, size in (("a", 5 * MIB), ("b", 5 * MIB), ("c", 1)):
        store.put(key, key.encode() * size)
    server.seen.clear()

    store.concat(["a", "b", "c"], "target")

    assert parts_of(store, "target") == 3
    assert not any(request.startswith("GET") for request in server.seen)


def is_part_copy(request: Handler) -> bool:
    return "x-amz-copy-source" in request.headers


UNABLE: dict[str, Rule] = {
    "refused": lambda request: is_part_copy(request) and respond_with(501, "NotImplemented")(request),
    "answered like an upload": lambda request: is_part_copy(request) and respond_with(200)(request),
    "the second refused": lambda request: (
        is_part_copy(request) and "partNumber=2" in request.path and respond_with(501, "NotImplemented")(request)
    ),
}


@pytest.mark.system
@pytest.mark.parametrize("name", UNABLE)
def test_concat_without_server_copy_uploads_the_bytes(name: str, proxied: Proxied, s3_server: S3Server) -> None:
    store = proxied.store
    proxied.server.rule = UNABLE[name]
    parts = {key: key.encode() * 6 * MIB for key in "abc"}
    for key, data in parts.items():
        store.put(key, data)

    assert store.concat(["a", "b", "c"], "target") == 18 * MIB

    assert store.read("target") == b"".join(parts.values())
    assert uploads_below(s3_server, store) == []


@pytest.mark.parametrize("prefix", ["", "of-ours"])
def test_incomplete_uploads_lists_only_own_keys(prefix: str, s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), f"shared-{prefix or 'whole'}"
    client.call_s3("create_bucket", Bucket=bucket)
    store = open_objects(s3_server.settings(storage_url=f"s3://{bucket}/{prefix}".rstrip("/")))
    top = f"{prefix}/" if prefix else ""
    ours = [f"{top}{layout.input_key(new_file_id())}", f"{top}{layout.output_key(new_batch_id())}"]
    foreign = ["film.mp4", f"{top}film.mp4", f"{top}files/film.mp4", f"{top}batches/2024/part-1", "else/files/x"]
    for key in (*ours, *foreign):
        client.call_s3("create_multipart_upload", Bucket=bucket, Key=key)

    found = store.incomplete_uploads(older_than_s=0)

    assert sorted(name.rpartition(" ")[0] for name in found) == sorted(ours)
    for name in found:
        store.abort_upload(name)
    assert store.incomplete_uploads(older_than_s=0) == []


def uploads_below(server: S3Server, store: ObjectStore) -> list[str]:
    """The keys of the multipart uploads that were begun and not ended."""
    prefix = store.root.removeprefix(f"s3://{server.bucket}/")
    found = server.client().call_s3("list_multipart_uploads", Bucket=server.bucket, Prefix=prefix)
    return [upload["Key"] for upload in found.get("Uploads", ())]


class Stop(Exception):
    """An error raised within a writer."""


def write_and_raise(store: ObjectStore, size: int) -> None:
    with store.writer("key") as file:
        file.write(b"x" * size)
        raise Stop


@pytest.mark.system
@pytest.mark.parametrize("size", [0, 10, 20 * MIB])
def test_writer_that_raises_leaves_no_upload(size: int, s3_server: S3Server) -> None:
    store = open_objects(s3_server.settings())

    with pytest.raises(Stop):
        write_and_raise(store, size)

    assert uploads_below(s3_server, store) == []


@pytest.mark.system
def test_upload_that_cannot_complete_raises_fault_and_is_aborted(proxied: Proxied, s3_server: S3Server) -> None:
    def refuse(request: Handler) -> bool:
        completes = request.command == "POST" and "uploadId=" in request.path
        return completes and respond_with(400, "InvalidPart")(request)

    proxied.server.rule = refuse

    with pytest.raises(StorageFault, match="told so"):
        write(proxied.store, "key", *[b"x" * MIB] * 20)

    assert not proxied.store.exists("key")
    assert uploads_below(s3_server, proxied.store) == []


@pytest.mark.system
def test_upload_unknown_to_the_server_raises_fault_not_not_found(proxied: Proxied) -> None:
    def forget(request: Handler) -> bool:
        return "partNumber=" in request.path and respond_with(404, "NoSuchUpload")(request)

    proxied.server.rule = forget

    with pytest.raises(StorageFault, match="told so"):
        write(proxied.store, "key", *[b"x" * MIB] * 20)


@pytest.mark.system
def test_object_is_read_in_one_request(proxied: Proxied) -> None:
    proxied.store.put("key", b"x" * MIB)
    proxied.server.seen.clear()

    proxied.store.read("key")

    assert len(proxied.server.seen) == 1


# A server that stumbles


STUMBLES = {
    "503": respond_with(503, "SlowDown"),
    "500": respond_with(500, "InternalError"),
    "502 from a proxy": respond_with(502, text="<html>Bad Gateway</html>"),
    "the connection ends": hang_up,
    "the body breaks off": truncate_body,
}


@pytest.mark.system
@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("name", STUMBLES)
@pytest.mark.parametrize("read", ["read", "read a range", "stream"])
def test_read_that_fails_once_is_retried(name: str, read: str, proxied: Proxied) -> None:
    store = proxied.store
    store.put("key", b"0123456789")
    proxied.server.rule = only_first(STUMBLES[name], when=lambda request: request.command == "GET")

    if read == "read":
        assert store.read("key") == b"0123456789"
    elif read == "read a range":
        assert store.read("key", 2, 5) == b"234"
    else:
        assert b"".join(store.stream("key")) == b"0123456789"


@pytest.mark.system
@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("name", [name for name in STUMBLES if name != "the body breaks off"])
def test_write_that_fails_once_is_retried(name: str, proxied: Proxied) -> None:
    proxied.server.rule = only_first(STUMBLES[name], when=lambda request: request.command == "PUT")

    write(proxied.store, "key", *[b"x" * MIB] * 9)

    assert proxied.store.read("key") == b"x" * 9 * MIB


# A server that is none


@pytest.fixture(scope="module")
def broken() -> Iterator[Proxied]:
    """A server with nothing behind it."""
    with forwarding_proxy(None) as server:
        yield Proxied(open_objects(S3Server(server.url).settings()), server)


@pytest.mark.parametrize("work", ["put", "write", "put_if_absent", "find", "delete", "read"])
def test_missing_bucket_raises_fault_naming_it(work: str, broken: Proxied) -> None:
    broken.server.rule = respond_with(404, "NoSuchBucket")

    with pytest.raises(StorageFault, match=r"s3://objects/.*no such bucket"):
        WORK[work](broken.store)


@pytest.mark.parametrize("work", ["put", "write", "write much", "put_if_absent", "find", "delete"])
def test_bare_404_on_write_find_or_delete_raises_fault(work: str, broken: Proxied) -> None:
    broken.server.rule = respond_with(404)

    with pytest.raises(StorageFault, match="s3://objects/"):
        WORK[work](broken.store)


@pytest.mark.parametrize("work", ["info", "read", "stream"])
def test_bare_404_on_read_is_not_found(work: str, broken: Proxied) -> None:
    broken.server.rule = respond_with(404)

    with pytest.raises(NotFound, match="or no such bucket"):
        WORK[work](broken.store)


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("work", ["find", "write", "concat"])
def test_server_that_is_not_s3_raises_fault(work: str, broken: Proxied) -> None:
    broken.server.rule = respond_with(200, text="<html>Welcome!</html>")

    with pytest.raises(StorageFault, match="not from an S3 server"):
        WORK[work](broken.store)


# A server that is out of order altogether


OUT_OF_ORDER = {
    "answers 503": respond_with(503, "ServiceUnavailable"),
    "asks to slow down": respond_with(503, "SlowDown"),
    "is behind a proxy that answers 502": respond_with(502, text="<html>Bad Gateway</html>"),
    "hangs up": hang_up,
}
MOST_TRIES = 32
"""Of one request: four by botocore, twice two of s3fs round that, and each again where a connection ends."""


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("name", OUT_OF_ORDER)
@pytest.mark.parametrize("work", WORK)
def test_failing_server_raises_fault_after_bounded_attempts(work: str, name: str, broken: Proxied) -> None:
    broken.server.rule = OUT_OF_ORDER[name]
    broken.server.seen.clear()

    with pytest.raises(StorageFault, match="s3://objects/"):
        WORK[work](broken.store)

    assert 0 < len(broken.server.seen) <= MOST_TRIES


@pytest.fixture(scope="module")
def gone() -> ObjectStore:
    """A store where nobody listens."""
    return open_objects(S3Server(f"http://127.0.0.1:{free_ports(1)[0]}").settings())


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("work", WORK)
def test_unreachable_server_raises_fault(work: str, gone: ObjectStore) -> None:
    with pytest.raises(StorageFault, match=r"s3://objects/.*Could not connect"):
        WORK[work](gone)


@pytest.mark.system
def test_attempts_with_backoff_end_within_15_seconds() -> None:
    with forwarding_proxy(None, respond_with(503, "ServiceUnavailable")) as server:
        store = open_objects(S3Server(server.url).settings())
        started = time.monotonic()

        with pytest.raises(StorageFault):
            store.put("key", b"text")

    assert time.monotonic() - started < 15
