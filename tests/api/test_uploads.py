"""Uploads: every shape of form, what is refused, and who vanishes or dawdles."""

import contextlib
import gzip
import socket
import time
from collections.abc import Iterator
from itertools import product

import httpx
import pytest
from helpers.api_server import ApiServer, root_of
from helpers.polling import until

from batchline.api import request_limits, upload
from batchline.models.errors import StorageFault

CONTENT = b"".join(b'{"custom_id": "%d"}\r\n--X\r\n' % number for number in range(9_000))
"""With what looks like the beginning of a boundary in it."""


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    return f'--XY\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


END = b"--XY--\r\n"
PURPOSE = part("purpose", b"batch")
FILE = part("file", CONTENT, "r.jsonl")
HEADERS = {"Content-Type": "multipart/form-data; boundary=XY"}


def left(served: ApiServer) -> list[object]:
    """Return all objects in storage and all scheduled deletions."""
    services = served.client.services
    found = [*services.store.list_objects(""), *services.store.incomplete_uploads(older_than_s=0)]
    return [*found, *services.records.due_deletions(now=time.time() + 10**6)]


ORDERS = {
    "purpose first": PURPOSE + FILE + END,
    "file first": FILE + PURPOSE + END,
    "with more around": b"\r\n" + PURPOSE + FILE + END + b"epilogue",
}


def test_upload_accepts_any_field_order_and_block_size(served: ApiServer):
    client = served.http()
    for order, piece in product(ORDERS, (7, 4_096, 10**9)):
        form = ORDERS[order]
        pieces = (form[at : at + piece] for at in range(0, len(form), piece))

        file = client.post("/v1/files", content=pieces, headers=HEADERS).json()

        assert (file["filename"], file["bytes"]) == ("r.jsonl", len(CONTENT)), (order, piece)
        assert b"".join(served.client.files.content(file["id"])) == CONTENT, (order, piece)


def test_upload_applies_expiry_after_file_and_decompresses_gzip(served: ApiServer):
    expiry = part("expires_after[seconds]", b"60") + part("expires_after[anchor]", b"created_at")
    form = part("file", gzip.compress(CONTENT), "Größe.jsonl.gz") + expiry + PURPOSE + END

    file = served.http().post("/v1/files", content=form, headers=HEADERS).json()

    assert (file["filename"], file["bytes"]) == ("Größe.jsonl", len(CONTENT))
    assert file["expires_at"] == file["created_at"] + 60


REFUSED = {
    "no purpose": (FILE + END, "purpose"),
    "another purpose behind the file": (FILE + part("purpose", b"vision") + END, "purpose"),
    "no file": (PURPOSE + END, "file"),
    "nothing": (b"", "file"),
    "two files": (PURPOSE + FILE + FILE + END, "file"),
    "an unknown field": (part("purposes", b"batch") + FILE + END, "purposes"),
    "a field without end": (part("purpose", b"b" * 2_000) + FILE + END, "purpose"),
    "no seconds": (PURPOSE + part("expires_after[anchor]", b"created_at") + FILE + END, "expires_after[seconds]"),
    "seconds in words": (PURPOSE + part("expires_after[seconds]", b"ten") + FILE + END, "expires_after[seconds]"),
    "no seconds at all": (PURPOSE + part("expires_after[seconds]", b"0") + FILE + END, "expires_after"),
    "another anchor": (
        PURPOSE + FILE + part("expires_after[seconds]", b"9") + part("expires_after[anchor]", b"now") + END,
        "expires_after[anchor]",
    ),
    "no end": (PURPOSE + FILE, None),
    "half a file": (PURPOSE + FILE[:5_000], None),
    "no form": (b"{}", None),
    "no gzip": (PURPOSE + part("file", b"no", "r.gz") + END, "file"),
}


def test_invalid_upload_is_rejected_and_stores_nothing(served: ApiServer):
    client = served.http()
    for name, (form, param) in REFUSED.items():
        answer = client.post("/v1/files", content=form, headers=HEADERS)

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (name, answer.text)
        assert left(served) == [], name


def test_upload_with_wrong_content_type_is_rejected(served: ApiServer):
    client = served.http()
    for kind in ("application/json", "multipart/form-data", "multipart/mixed; boundary=XY", ""):
        answer = client.post("/v1/files", content=PURPOSE + FILE + END, headers={"Content-Type": kind})

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file"), kind


def test_upload_over_size_limit_is_rejected_while_streaming(start_api):
    served = start_api(max_file_bytes=2**20)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield PURPOSE + part("file", b"", "r.jsonl")[:-2]
        while sent < 2**30:
            sent += 2**16
            yield b"x" * 2**16

    try:
        answer = served.http().post("/v1/files", content=endless(), headers=HEADERS)
    except httpx.WriteError:
        pass
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    until(lambda: left(served) == [])


def test_upload_storage_error_returns_503_without_details(served: ApiServer, monkeypatch):
    def fail(_: str) -> None:
        raise StorageFault("/secret/place: disk full")

    monkeypatch.setattr(served.client.services.store, "writer", fail)

    answer = served.http().post("/v1/files", content=PURPOSE + FILE + END, headers=HEADERS)

    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert "secret" not in answer.text
    assert "retry-after" in answer.headers


# Clients that vanish or dawdle


def begun(served: ApiServer, body: bytes, *, length: int = 10**6) -> socket.socket:
    """A connection on which an upload has begun."""
    host, _, port = root_of(served.url).removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/files HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\n"
    connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=XY\r\n\r\n" + body)
    return connection


def test_disconnected_upload_stores_nothing(served: ApiServer):
    connection = begun(served, PURPOSE + FILE[:100_000])
    until(lambda: left(served) != [])

    connection.close()

    until(lambda: left(served) == [])


@pytest.mark.system
@pytest.mark.parametrize("how", ["vanishes", "falls silent"])
def test_interrupted_upload_leaves_nothing_on_s3(how, start_api, s3_server, monkeypatch):
    """S3 would keep the parts of an incomplete upload until it is aborted."""
    monkeypatch.setattr(request_limits, "BODY_IDLE_TIMEOUT_S", 0.5 if how == "falls silent" else 30)
    place = s3_server.settings()
    names = ("storage_url", "s3_endpoint_url", "s3_region", "s3_access_key_id", "s3_secret_access_key")
    served = start_api(**{name: getattr(place, name) for name in names})
    long = PURPOSE + part("file", CONTENT * 120, "r.jsonl")
    with begun(served, long, length=10**9) as connection:
        until(lambda: served.client.services.store.incomplete_uploads(older_than_s=0) != [])
        if how == "falls silent":
            connection.settimeout(30)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")

    until(lambda: left(served) == [])


@pytest.mark.parametrize("body", [b"", PURPOSE, PURPOSE + FILE[:5_000]], ids=["no body", "no file", "half a file"])
def test_idle_upload_times_out_with_408(body, served: ApiServer, monkeypatch):
    monkeypatch.setattr(request_limits, "BODY_IDLE_TIMEOUT_S", 0.3)
    with begun(served, body) as connection:
        connection.settimeout(10)
        answer = connection.recv(10_000)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    until(lambda: left(served) == [])


def test_trickling_upload_times_out_with_408(served: ApiServer, monkeypatch):
    monkeypatch.setattr(request_limits, "BODY_BASE_TIMEOUT_S", 0.5)
    with begun(served, PURPOSE + FILE[:200]) as connection:
        connection.settimeout(0.05)
        answer, began = b"", time.monotonic()
        while not answer:
            assert time.monotonic() - began < 10
            connection.send(b"x")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(10_000)
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(10_000):  # else the rest of the body could trickle in for ever
                pass

    assert answer.startswith(b"HTTP/1.1 408 ")
    until(lambda: left(served) == [])


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nx: "], ids=["path", "header"])
def test_endless_request_head_is_rejected(begin, served: ApiServer):
    host, _, port = root_of(served.url).removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(10)
        sent = 0
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < 64 * 2**20:
                connection.sendall(begin if not sent else b"y" * 4_096)
                sent += 4_096
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(10_000).startswith(b"HTTP/1.1 400 ")
    assert sent < 16 * 2**20  # with what the system holds between
    assert served.http().get("/healthz").status_code == 200


def test_non_http_input_is_rejected(served: ApiServer):
    host, _, port = root_of(served.url).removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        connection.settimeout(10)
        assert connection.recv(10_000).startswith(b"HTTP/1.1 400 ")


def test_slow_uploads_do_not_delay_other_requests(served: ApiServer):
    slow = [begun(served, PURPOSE + FILE[:70_000]) for _ in range(60)]
    until(lambda: len(left(served)) >= 60)

    began = time.monotonic()
    assert served.http().post("/v1/files", content=PURPOSE + FILE + END, headers=HEADERS).status_code == 200
    assert served.http().get("/v1/files").status_code == 200

    assert time.monotonic() - began < 20
    for connection in slow:
        connection.close()
    until(lambda: len(left(served)) == 1)


def test_upload_without_free_slot_returns_503_with_retry_after(served: ApiServer, monkeypatch):
    monkeypatch.setattr(upload, "SLOT_TIMEOUT_S", 0.3)
    slow = [begun(served, PURPOSE + FILE[:70_000]) for _ in range(64)]
    until(lambda: len(left(served)) >= 64)

    answer = served.http().post("/v1/files", content=PURPOSE + FILE + END, headers=HEADERS)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    for connection in slow:
        connection.close()


def test_upload_waits_for_free_slot(served: ApiServer):
    slow = [begun(served, PURPOSE + FILE[:70_000]) for _ in range(64)]
    until(lambda: len(left(served)) >= 64)

    with begun(served, PURPOSE + FILE + END, length=len(PURPOSE + FILE + END)) as waiting:
        waiting.settimeout(0.5)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        slow.pop().close()
        waiting.settimeout(15)
        assert waiting.recv(10_000).startswith(b"HTTP/1.1 200 ")
    for connection in slow:
        connection.close()
