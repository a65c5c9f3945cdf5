"""Asks a simulator, with as little as can be between the test and the wire."""

import http.client
import json
import socket
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple
from urllib.parse import urlsplit

from batchline.simulate import Simulator

CHAT = "/v1/chat/completions"


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


def address(simulator: Simulator) -> tuple[str, int]:
    parts = urlsplit(simulator.base_url)
    return str(parts.hostname), int(parts.port or 0)


def connected(simulator: Simulator, timeout_s: float = 10.0) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*address(simulator), timeout=timeout_s)


def send(
    simulator: Simulator,
    body: object = None,
    *,
    path: str = CHAT,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    on: http.client.HTTPConnection | None = None,
    timeout_s: float = 10.0,
) -> Answer:
    """Send one request, on a connection of its own where none is given."""
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = on or connected(simulator, timeout_s)
    try:
        connection.request(method, path, content, headers or {})
        response = connection.getresponse()
        got = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, got, response.read())
    finally:
        if on is None:
            connection.close()


def chat_body(prompt: str = "Hello?", **members: object) -> dict:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **members}


def send_raw(simulator: Simulator, sent: Sequence[bytes]) -> bytes:
    """Send these bytes one after another, and return all that comes back until the server closes."""
    with closing(socket.create_connection(address(simulator), timeout=10)) as connection:
        for piece in sent:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def request_bytes(body: dict, *headers: str, path: str = CHAT) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content
