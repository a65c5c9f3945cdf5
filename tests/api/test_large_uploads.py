"""A file that is too large for a server's memory: it comes out as it went in, and takes none on its way."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers.api_server import root_of
from helpers.command_line import running_command
from helpers.storage_servers import S3Server

MIB = 2**20
GROWS_MIB = 32
"""At most, of the server's peak: two of the parts in which a file goes to S3, one full and one on its way."""


@pytest.fixture(params=[("local", 1_024), ("s3", 300)], ids=lambda param: f"{param[1]} MiB, {param[0]}")
def storage(request: pytest.FixtureRequest) -> tuple[dict[str, str], int]:
    """Settings of each kind of storage, and how many MiB go there."""
    kind, size_mib = request.param
    if kind == "local":
        return {}, size_mib
    server: S3Server = request.getfixturevalue("s3_server")
    settings = server.settings(f"large/{random.randbytes(8).hex()}")
    return {
        "BATCHLINE_STORAGE_URL": settings.storage_url,
        "BATCHLINE_S3_ENDPOINT_URL": server.url,
        "BATCHLINE_S3_REGION": "us-east-1",
        "BATCHLINE_S3_ACCESS_KEY_ID": server.key,
        "BATCHLINE_S3_SECRET_ACCESS_KEY": server.secret,
    }, size_mib


@pytest.mark.system
def test_large_file_round_trip_uses_constant_memory(storage, tmp_path):
    settings, size_mib = storage
    upstream = "http://127.0.0.1:9/v1"
    with running_command("serve", "--port", "0", OPENAI_BASE_URL=upstream, **settings) as server:
        server.wait_for("serving at ")
        url = root_of(server.err.partition("serving at ")[2].split()[0])
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            there_and_back(client, 20)
            before = peak_mib(server.process.pid)

            there_and_back(client, size_mib)

            grown = peak_mib(server.process.pid) - before
    assert grown < GROWS_MIB


def there_and_back(client: httpx.Client, size_mib: int) -> None:
    """Upload so many MiB, and read them whole, by their last lines and by a range."""
    sent = hashlib.sha256()

    def form() -> Iterator[bytes]:
        yield b'--XY\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--XY\r\nContent-Disposition: form-data; name="file"; filename="r.jsonl"\r\n\r\n'
        for number in range(size_mib):
            block = mebibyte(number)
            sent.update(block)
            yield block
        yield b"\r\n--XY--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=XY"}
    file = client.post("/v1/files", content=form(), headers=headers).json()
    assert file["bytes"] == size_mib * MIB
    address, last = f"/v1/files/{file['id']}/content", mebibyte(size_mib - 1)
    read = hashlib.sha256()
    with client.stream("GET", address) as answer:
        for block in answer.iter_bytes():
            read.update(block)
    assert read.digest() == sent.digest()
    assert client.get(address, headers={"Range": f"bytes=-{MIB}"}).content == last
    assert client.get(address, params={"skip": size_mib * LINES - 2}).content == b"".join(
        last.splitlines(keepends=True)[-2:]
    )


LINES = 1_024
_FILLING = random.Random(0).randbytes(LINES // 2 - 8).hex().encode()


def mebibyte(number: int) -> bytes:
    """Another MiB for each number, in lines of a KiB."""
    return b"".join(b"%015d%b\n" % (number * LINES + line, _FILLING) for line in range(LINES))


def peak_mib(pid: int) -> float:
    """The most memory that the process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1_024
