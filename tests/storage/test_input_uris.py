"""Input files elsewhere: only those below an allowed root can be read, and no path leads round it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.forwarding_proxy import forwarding_proxy, respond_with
from helpers.storage_servers import SECRET, S3Server
from helpers.unprivileged_user import as_nobody

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.settings import Settings, load_settings
from batchline.storage.objects.input_uris import open_input_uri

TEXT = b"line 1\nline 2\n"


def read(uri: str, settings: Settings) -> bytes:
    with open_input_uri(uri, settings) as file:
        return file.read()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A root with a file in it, beside others that are none of its."""
    for name in ("data/in.jsonl", "data/below/in.jsonl", "data2/in.jsonl", "secret/in.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TEXT)
    return tmp_path / "data"


def roots(*paths: object, **settings: object) -> Settings:
    return load_settings(source_roots=tuple(map(str, paths)), **settings)


# Files


INSIDE = ["{data}/in.jsonl", "file://{data}/in.jsonl", "{data}/below/../in.jsonl", "{data}/./below//in.jsonl"]


@pytest.mark.parametrize("uri", INSIDE)
@pytest.mark.parametrize("root", ["{data}", "{data}/", "file://{data}", "{data}/../data"])
def test_file_below_root_is_read(uri: str, root: str, data: Path) -> None:
    assert read(uri.format(data=data), roots("/nowhere", root.format(data=data))) == TEXT


def test_root_may_be_a_single_file(data: Path) -> None:
    allowed = roots(data / "in.jsonl")

    assert read(str(data / "in.jsonl"), allowed) == TEXT
    with pytest.raises(InvalidInput):
        read(str(data / "below/in.jsonl"), allowed)


def test_relative_path_starts_at_the_working_directory(data: Path) -> None:
    assert read("data/in.jsonl", roots(data)) == TEXT
    with pytest.raises(InvalidInput):
        read("data2/in.jsonl", roots(data))


def test_path_with_tilde_is_expanded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data.parent))

    assert read("~/data/in.jsonl", roots("~/data")) == TEXT


OUTSIDE = [
    "{data}/../secret/in.jsonl",
    "{data}/below/../../secret/in.jsonl",
    "{data}2/in.jsonl",
    "{data}/../data2/in.jsonl",
    "secret/in.jsonl",
    "{data}/..",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://{data}/../secret/in.jsonl",
    "/proc/self/root/etc/passwd",
    "",
]


@pytest.mark.parametrize("uri", OUTSIDE)
def test_path_outside_every_root_is_rejected(uri: str, data: Path) -> None:
    with pytest.raises(InvalidInput, match="BATCHLINE_SOURCE_ROOTS") as raised:
        read(uri.format(data=data), roots(data))
    assert raised.value.param == "input_uri"


def test_rejection_names_the_allowed_roots(data: Path) -> None:
    with pytest.raises(InvalidInput, match=f"allowed: {data}, s3://bucket/prefix"):
        read("/etc/passwd", roots(data, "s3://bucket/prefix"))


@pytest.mark.parametrize("uri", ["{data}/in.jsonl", "s3://bucket/key", "/"])
def test_every_uri_is_rejected_without_roots(uri: str, data: Path) -> None:
    with pytest.raises(InvalidInput, match="allowed: none"):
        read(uri.format(data=data), load_settings())


def test_symlink_leaving_the_root_is_rejected(data: Path) -> None:
    (data / "link.jsonl").symlink_to(data.parent / "secret/in.jsonl")
    (data / "folder").symlink_to(data.parent / "secret")
    (data / "chain.jsonl").symlink_to("link.jsonl")

    for name in ("link.jsonl", "folder/in.jsonl", "chain.jsonl"):
        with pytest.raises(InvalidInput, match="not below an allowed root"):
            read(str(data / name), roots(data))


def test_symlink_within_the_root_is_followed(data: Path) -> None:
    (data / "link.jsonl").symlink_to("below/in.jsonl")

    assert read(str(data / "link.jsonl"), roots(data)) == TEXT


def test_root_may_be_a_symlink(data: Path) -> None:
    (data.parent / "link").symlink_to(data)

    assert read(str(data.parent / "link/in.jsonl"), roots(data.parent / "link")) == TEXT
    assert read(str(data / "in.jsonl"), roots(data.parent / "link")) == TEXT


ODD: dict[str, str] = {
    "a circle of links": "{data}/odd",
    "below a circle of links": "{data}/odd/in.jsonl",
    "a NUL": "{data}/a\0b",
    "the home of nobody": "~nobody-of-this-name/in.jsonl",
}


@pytest.mark.parametrize("name", ODD)
def test_impossible_path_is_rejected(name: str, data: Path) -> None:
    (data / "odd").symlink_to("odd")

    with pytest.raises(InvalidInput) as raised:
        read(ODD[name].format(data=data), roots(data))
    assert raised.value.param == "input_uri"


@pytest.mark.parametrize("name", ["missing.jsonl", "below/missing.jsonl", "below", "", "in.jsonl/x"])
def test_missing_file_is_not_found(name: str, data: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        read(str(data / name), roots(data))


def test_file_without_read_permission_raises_fault(data: Path) -> None:
    (data / "in.jsonl").chmod(0)
    allowed = roots(data)

    with as_nobody(), pytest.raises(StorageFault, match="cannot be read"):
        read(str(data / "in.jsonl"), allowed)


@pytest.mark.parametrize("uri", ["https://host/in.jsonl", "gs://bucket/in.jsonl", "S3://bucket/in.jsonl"])
def test_unsupported_uri_scheme_is_rejected(uri: str) -> None:
    with pytest.raises(InvalidInput, match="give a path or an s3:// address"):
        read(uri, roots("/", "s3://bucket", "https://host"))


# S3


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/data2/in.jsonl",
        "s3://bucket/other/in.jsonl",
        "s3://bucket/data",
        "s3://bucket2/data/in.jsonl",
        "s3://buck/data/in.jsonl",
        "s3://bucket",
    ],
)
def test_s3_uri_outside_every_root_is_rejected(uri: str) -> None:
    with pytest.raises(InvalidInput, match="input_uri"):
        read(uri, roots("s3://bucket/data", "/"))


@pytest.mark.parametrize(
    "key",
    ["../other/in.jsonl", "below/../../in.jsonl", "./in.jsonl", "a//b", "a/", "x?/../../in", "x#/../../in", ".."],
)
def test_s3_key_with_dotted_or_empty_segments_is_rejected(key: str) -> None:
    with pytest.raises(InvalidInput, match="empty or dotted name"):
        read(f"s3://bucket/data/{key}", roots("s3://bucket/data"))


def test_local_root_does_not_allow_s3_or_vice_versa(data: Path) -> None:
    with pytest.raises(InvalidInput):
        read("s3://bucket/in.jsonl", roots("/"))
    with pytest.raises(InvalidInput):
        read(str(data / "in.jsonl"), roots("s3://bucket"))


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> Iterator[Callable[..., Settings]]:
    """Settings that let into the server's bucket, which has some objects."""
    client = s3_server.client()
    names = {"in.jsonl": TEXT, "odd ?#%.jsonl": TEXT, "empty.jsonl": b"", "large.jsonl": b"0123456789" * 2_000_000}
    for name, text in names.items():
        client.pipe_file(f"{s3_server.bucket}/sources/{name}", text)
    yield lambda root="s3://objects/sources", **changes: s3_server.settings(source_roots=(root,), **changes)
    client.rm([f"{s3_server.bucket}/sources/{name}" for name in names])


@pytest.mark.system
@pytest.mark.parametrize(
    "root", ["s3://objects", "s3://objects/", "s3://objects/sources", "s3://objects/sources/"]
)
def test_s3_object_below_root_is_read(root: str, bucket: Callable[..., Settings]) -> None:
    assert read("s3://objects/sources/in.jsonl", bucket(root)) == TEXT


@pytest.mark.system
def test_s3_object_with_special_characters_is_read(bucket: Callable[..., Settings]) -> None:
    assert read("s3://objects/sources/odd ?#%.jsonl", bucket()) == TEXT


@pytest.mark.system
def test_s3_object_is_read_in_blocks_of_any_size(bucket: Callable[..., Settings]) -> None:
    with open_input_uri("s3://objects/sources/large.jsonl", bucket()) as file:
        pieces = [file.read(3), file.read(3_000_000), file.read(12_000_000), file.read()]

    assert b"".join(pieces) == b"0123456789" * 2_000_000
    assert [len(piece) for piece in pieces[:3]] == [3, 3_000_000, 12_000_000]


@pytest.mark.system
def test_empty_s3_object_has_no_bytes(bucket: Callable[..., Settings]) -> None:
    assert read("s3://objects/sources/empty.jsonl", bucket()) == b""


@pytest.mark.system
@pytest.mark.parametrize("name", ["sources/missing.jsonl", "sources"])
def test_missing_s3_object_is_not_found(name: str, bucket: Callable[..., Settings]) -> None:
    with pytest.raises(NotFound, match=f"s3://objects/{name}"):
        read(f"s3://objects/{name}", bucket("s3://objects"))


@pytest.mark.system
def test_wrong_secret_raises_fault_without_showing_it(bucket: Callable[..., Settings]) -> None:
    with pytest.raises(StorageFault, match="check the access key") as raised:
        read("s3://objects/sources/in.jsonl", bucket(s3_secret_access_key=f"not-{SECRET}"))
    assert SECRET not in str(raised.value)


@pytest.mark.system
@pytest.mark.usefixtures("without_waits")
def test_server_error_during_read_raises_fault(bucket: Callable[..., Settings], s3_server: S3Server) -> None:
    with (
        forwarding_proxy(s3_server.url) as server,
        open_input_uri("s3://objects/sources/large.jsonl", bucket(s3_endpoint_url=server.url)) as file,
    ):
        file.read(1)
        server.rule = respond_with(500, "InternalError")
        with pytest.raises(StorageFault, match=r"sources/large\.jsonl"):
            file.read()


@pytest.mark.system
def test_error_in_the_reading_block_is_not_a_storage_fault(bucket: Callable[..., Settings]) -> None:
    with pytest.raises(FileNotFoundError), open_input_uri("s3://objects/sources/in.jsonl", bucket()):
        Path("nowhere").read_bytes()
