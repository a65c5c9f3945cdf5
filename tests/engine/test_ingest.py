"""Input files on their way in: decompressed, measured, and stored whole or not at all."""

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from batchline.engine.ingest import (
    create_batch,
    read_input_blocks,
    store_input,
    store_input_file,
    store_input_from,
)
from batchline.engine.services import Services
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest
from batchline.models.errors import InvalidInput, NotFound
from batchline.models.settings import load_settings
from batchline.steps.validate_lines import validate_lines

CONTENT = b"".join(b'{"custom_id":"%d"}\r\n' % random.Random(number).getrandbits(64) for number in range(20_000))
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


def wide_zst(data: bytes, window_log: int) -> bytes:
    """The data compressed with that window, whatever their size."""
    options = zstandard.ZstdCompressionParameters(window_log=window_log)
    writer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    return writer.compress(data) + writer.flush()


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    return make_services("http://localhost:9", max_file_bytes=4 * 2**20)


def stored_below(services: Services) -> list[Path]:
    return [path for path in Path(services.store.root).rglob("*") if path.is_file()]


WHOLE = {
    "plain": ("a.jsonl", CONTENT),
    "plain with a mark and CRLF": ("a.jsonl", b"\xef\xbb\xbf{}\r\n\n{}"),
    "plain and empty": ("a.jsonl", b""),
    "gzip": ("a.jsonl.gz", gzip.compress(CONTENT)),
    "gzip of two members": ("a.jsonl.gz", gzip.compress(CONTENT[:99]) + gzip.compress(CONTENT[99:])),
    "gzip named in capitals": ("A.JSONL.GZ", gzip.compress(CONTENT)),
    "zstd": ("a.jsonl.zst", zst(CONTENT)),
    "zstd of two frames": ("a.jsonl.zst", zst(CONTENT[:99]) + zst(CONTENT[99:])),
    "zstd with a skippable frame": ("a.jsonl.zst", SKIPPABLE + zst(CONTENT)),
    "zstd without a size in its header": (
        "a.jsonl.zst",
        zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(CONTENT),
    ),
}


@pytest.mark.parametrize(("name", "data"), WHOLE.values(), ids=WHOLE)
def test_upload_is_stored_decompressed_with_size_and_digest(name: str, data: bytes, services: Services) -> None:
    content = data if data.startswith((b"\xef", b"{")) or not data else CONTENT

    record = store_input(services, io.BytesIO(data), filename=name)

    assert services.store.read(record.key) == content
    assert (record.size_bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert services.records.get_file(record.id) == record


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a.jsonl", "a.jsonl"),
        ("a.jsonl.gz", "a.jsonl"),
        ("A.JSONL.GZ", "A.JSONL"),
        ("a.jsonl.zst", "a.jsonl"),
        ("/etc/a.jsonl", "a.jsonl"),
        ("..\\..\\a.jsonl", "a.jsonl"),
        ("", "input.jsonl"),
    ],
)
def test_upload_filename_loses_folders_and_compression_suffix(name: str, plain: str, services: Services) -> None:
    data = gzip.compress(b"{}") if name.lower().endswith("gz") else zst(b"{}") if name.endswith("zst") else b"{}"

    assert store_input(services, io.BytesIO(data), filename=name).filename == plain


BROKEN = {
    "gzip cut short": ("a.gz", gzip.compress(CONTENT)[:-10]),
    "gzip cut within its header": ("a.gz", gzip.compress(CONTENT)[:5]),
    "gzip with a flipped byte": ("a.gz", bytes(b ^ (at == 5_000) for at, b in enumerate(gzip.compress(CONTENT)))),
    "gzip with something behind it": ("a.gz", gzip.compress(CONTENT) + b"more"),
    "no gzip at all": ("a.gz", CONTENT),
    "zstd cut short": ("a.zst", zst(CONTENT)[:-10]),
    "zstd cut by one byte": ("a.zst", zst(CONTENT)[:-1]),
    "zstd cut within its header": ("a.zst", zst(CONTENT)[:3]),
    "zstd with something behind it": ("a.zst", zst(CONTENT) + b"more"),
    "no zstd at all": ("a.zst", CONTENT),
}


@pytest.mark.parametrize(("name", "data"), BROKEN.values(), ids=BROKEN)
def test_upload_that_cannot_be_decompressed_is_rejected_and_not_stored(
    name: str, data: bytes, services: Services
) -> None:
    with pytest.raises(InvalidInput, match=rf"{name} does not decompress as \w+: .*again"):
        store_input(services, io.BytesIO(data), filename=name)

    assert stored_below(services) == []


def test_zstd_window_over_8_mib_is_rejected_with_advice(services: Services) -> None:
    store_input(services, io.BytesIO(wide_zst(CONTENT, 23)), filename="a.zst")

    with pytest.raises(InvalidInput, match=r"window is over 8,388,608 bytes .leave out --long"):
        store_input(services, io.BytesIO(wide_zst(CONTENT, 24)), filename="a.zst")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_upload_over_decompressed_size_limit_is_rejected_and_not_stored(name: str, services: Services) -> None:
    data = b"x" * (services.settings.max_file_bytes + 1)
    packed = gzip.compress(data) if name.endswith("gz") else zst(data) if name.endswith("zst") else data

    with pytest.raises(InvalidInput, match=r"longer than 4194304 bytes.*split it"):
        store_input(services, io.BytesIO(packed), filename=name)

    assert stored_below(services) == []


def test_upload_of_exactly_the_size_limit_is_stored(services: Services) -> None:
    most = services.settings.max_file_bytes

    record = store_input(services, io.BytesIO(gzip.compress(b"x" * most)), filename="a.gz")

    assert record.size_bytes == most


def bomb(path: Path, size_mib: int) -> Path:
    """A small file that decompresses to that many MiB of one character."""
    with path.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as file:
                for _ in range(size_mib):
                    file.write(b"x" * 2**20)
        else:
            with zstandard.ZstdCompressor().stream_writer(raw) as writer:
                for _ in range(size_mib):
                    writer.write(b"x" * 2**20)
    return path


MEASURE = """
import json, re, sys
from pathlib import Path
from batchline.models.errors import InvalidInput
from batchline.engine.services import open_services
from batchline.engine.ingest import read_input_blocks, store_input_file
from batchline.steps.validate_lines import validate_lines

path, what = Path(sys.argv[1]), sys.argv[2]
services = open_services()
import gzip, zstandard

def peak():  # not from `getrusage`, whose figure starts from what the parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def check():
    return validate_lines(
        lambda: read_input_blocks(path), batch_id="", input_key="", endpoint=None, settings=services.settings,
        max_errors=None,
    )

before, codes, refused = peak(), [], False
if what == "store":
    try:
        store_input_file(services, path)
    except InvalidInput:
        refused = True
else:
    codes = [(error.code, error.line) for error in check().errors]
print(json.dumps({"grown_kib": peak() - before, "codes": codes, "refused": refused}))
"""


def measured(path: Path, what: str, **environment: str) -> dict:
    """Store or validate the file in its own process; return the result and the peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), what],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout)


@pytest.mark.system
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_decompression_bomb_is_rejected_in_bounded_memory(suffix: str, tmp_path: Path) -> None:
    path = bomb(tmp_path / f"bomb{suffix}", 300)

    found = measured(path, "store", BATCHLINE_MAX_FILE_BYTES=str(200 * 2**20))

    assert found["refused"]
    assert found["grown_kib"] < 64 * 1024


@pytest.mark.system
def test_line_of_50_mib_is_one_error_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b"\n\n")
        for _ in range(50):
            file.write(b"x" * 2**20)
        file.write(b"\nbad\n")

    found = measured(path, "validate", BATCHLINE_MAX_LINE_BYTES="2000000")

    assert found["codes"] == [["request_too_large", 3], ["invalid_json_line", 4]]
    assert found["grown_kib"] < 32 * 1024


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_unreadable_path_is_rejected_with_the_reason(name: str, services: Services, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot be read: (no such file|is a directory)"):
        store_input_file(services, tmp_path / name)


def test_compressed_local_file_is_validated_by_decompressed_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zst(b"\n\nbad\n"))

    found = validate_lines(
        lambda: read_input_blocks(path),
        batch_id="",
        input_key="",
        endpoint=None,
        settings=load_settings(),
        max_errors=None,
    )

    assert [(error.code, error.line) for error in found.errors] == [("invalid_json_line", 3)]


def test_upload_with_expiry_gets_expires_at(services: Services) -> None:
    record = store_input(services, io.BytesIO(b"{}"), filename="a.jsonl", expires_after=lambda: 3_600)

    assert record.expires_at == record.created_at + 3_600


def test_input_uri_below_allowed_root_is_stored(make_services: Callable[..., Services], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    services = make_services("http://localhost:9", source_roots=(str(tmp_path / "in"),))

    record = store_input_from(services, str(tmp_path / "in" / "a.jsonl.gz"))

    assert (record.filename, services.store.read(record.key)) == ("a.jsonl", b"{}\n")


@pytest.mark.parametrize("uri", ["secret.jsonl", "in/../secret.jsonl", "in/link.jsonl", "file://{}/secret.jsonl"])
def test_input_uri_outside_allowed_roots_is_rejected(
    uri: str, make_services: Callable[..., Services], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.jsonl").write_bytes(b"{}\n")
    (tmp_path / "in" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    services = make_services("http://localhost:9", source_roots=(str(tmp_path / "in"),))

    with pytest.raises(InvalidInput, match="not below an allowed root"):
        store_input_from(services, uri.format(tmp_path) if "://" in uri else str(tmp_path / uri))


def batch_of(services: Services, **fields: str) -> CreateBatchRequest:
    file = store_input(services, io.BytesIO(b"{}\n"), filename="a.jsonl")
    return CreateBatchRequest(**{"input_file_id": file.id, "endpoint": "/v1/chat/completions", **fields})


def test_batch_created_twice_by_one_flow_run_is_the_same(services: Services) -> None:
    request = batch_of(services)

    made = [
        create_batch(services, request, origin=BatchDwExtResponse(source="api"), flow_run_id="run") for _ in "12"
    ]

    assert made[0] == made[1]


@pytest.mark.parametrize("fields", [{"endpoint": "/v1/nothing"}, {"completion_window": "8d"}], ids=str)
def test_batch_with_disallowed_endpoint_or_window_is_rejected(fields: dict[str, str], services: Services) -> None:
    with pytest.raises(InvalidInput, match="allowed"):
        create_batch(services, batch_of(services, **fields), origin=BatchDwExtResponse(source="api"))


def test_batch_of_unknown_file_is_rejected(services: Services) -> None:
    request = batch_of(services, input_file_id="file-0")

    with pytest.raises(NotFound, match="file-0"):
        create_batch(services, request, origin=BatchDwExtResponse(source="api"))
