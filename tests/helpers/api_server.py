"""An API that runs on a socket, and clients of it."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import httpx
import openai

from batchline import Batchline
from batchline.api import Server
from batchline.api.server import AppFactory
from batchline.client.api_keys import ApiKeys
from batchline.models.api_keys import KeyLimits, Role
from batchline.simulate import Simulator
from helpers.polling import pauses

T = TypeVar("T")
ENDPOINT = "/v1/chat/completions"
WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of servers on loopback: a default context loads certificates, which takes 30 ms of CPU."""

FINAL_STATUSES = {"completed", "failed", "expired", "cancelled"}


@contextmanager
def serve_api(client: Batchline, face: AppFactory | None = None) -> Iterator[str]:
    """The base URL of the API over that client, which ends with the block."""
    server = Server(client, host="127.0.0.1", port=0, app_factory=face)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        httpx.get(f"{root_of(server.url)}/healthz", timeout=30, trust_env=False, verify=WITHOUT_TLS)
        yield server.url
    finally:
        server.stop()
        thread.join(60)


def root_of(url: str) -> str:
    """The address without the API's version."""
    return url.removesuffix("/v1")


class ApiServer:
    """An API that runs, with the client under it, which sees everything, and clients that end with it."""

    def __init__(self, client: Batchline, simulator: Simulator, face: AppFactory | None = None) -> None:
        self.client = client
        self.simulator = simulator
        self._stack = ExitStack()
        self.url = self._stack.enter_context(serve_api(client, face))

    def close(self) -> None:
        self._stack.close()

    def openai(self, token: str = "none") -> openai.OpenAI:
        """OpenAI's own client of it."""
        plain = openai.DefaultHttpxClient(verify=WITHOUT_TLS)
        client = openai.OpenAI(base_url=self.url, api_key=token, max_retries=0, timeout=60, http_client=plain)
        return self._stack.enter_context(client)

    def http(self, token: str | None = None) -> httpx.Client:
        """A plain client of it."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        client = httpx.Client(
            base_url=root_of(self.url), headers=headers, timeout=60, trust_env=False, verify=WITHOUT_TLS
        )
        return self._stack.enter_context(client)

    def key(self, name: str, role: Role = "member", **limits: int) -> str:
        """The token of a new key."""
        made = ApiKeys(self.client).create(name, role=role, limits=KeyLimits(**limits))
        assert made.token is not None
        return made.token


def wait_for_end(client: openai.OpenAI, batch_id: str, *, timeout_s: float = 60) -> openai.types.Batch:
    """Poll until the batch is over, as a program does."""
    for pause_s in pauses(timeout_s, max_pause_s=0.25):
        batch = client.batches.retrieve(batch_id)
        if batch.status in FINAL_STATUSES:
            return batch
        time.sleep(pause_s)
    raise AssertionError(batch)
