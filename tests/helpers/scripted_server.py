"""A raw HTTP/1.1 server on loopback that does to each request what a script says, however rude."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

Action = Callable[[asyncio.StreamWriter], Awaitable[bool]]
"""Respond to a request; return True if the connection may serve another one."""

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


@dataclass(frozen=True)
class Received:
    """A request as it came in; `number` counts from 0, `at` is in monotonic seconds."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def prompt(self) -> str:
        """The `user` of the body, by which tests tell requests apart."""
        return json.loads(self.body)["user"]


class ScriptedServer:
    """Serves in a thread of its own; can be stopped and started again on the same port."""

    def __init__(self, script: Callable[[Received], Action], *, reads_bodies: bool = True) -> None:
        self.script = script
        self._reads_bodies = reads_bodies
        self.received: list[Received] = []
        self.most_at_once = 0
        self.connections = 0
        self._at_once = 0
        self._numbers = itertools.count()
        self._writers: set[asyncio.StreamWriter] = set()
        self._talks: set[asyncio.Task[None]] = set()
        self._port = 0
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> "ScriptedServer":
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(ready),), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def stop(self) -> None:
        """Break all connections and refuse new ones."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)
            assert not self._thread.is_alive()
            self._thread = None

    def close_port(self) -> None:
        """Refuse new connections, from within an action."""
        self._listener.close()

    def reserve_port(self) -> "ScriptedServer":
        """Choose the port, where nothing listens as yet."""
        self.start()
        self.stop()
        return self

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = self._listener = await asyncio.start_server(self._talk, "127.0.0.1", self._port)
        self._port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._over.wait()
        server.close()
        # What asyncio is just accepting would stay open if it were cancelled.
        while accepting := asyncio.all_tasks() - self._talks - {asyncio.current_task()}:
            await asyncio.wait(accepting)
        for writer in list(self._writers):
            writer.transport.abort()
        talks = list(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        self._at_once = 0

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        self._writers.add(writer)
        self.connections += 1
        try:
            while (request := await self._read(reader)) is not None and await self._act(request, writer):
                if not self._reads_bodies:  # what follows is the rest of this request
                    await asyncio.sleep(3600)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Received | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)
        }
        size = int(headers.get("content-length", "0")) if self._reads_bodies else 0
        body = await reader.readexactly(size)
        request = Received(next(self._numbers), method, path, headers, body)
        self.received.append(request)
        return request

    async def _act(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self.script(request)(writer)
        finally:
            self._at_once -= 1


def reply(
    status: int = 200, body: object = None, *, after_s: float = 0.0, headers: Iterable[tuple[str, str]] = ()
) -> Action:
    """A whole answer; a body that is not bytes is sent as JSON, the default is a completion."""
    payload = body if isinstance(body, bytes) else json.dumps(COMPLETION if body is None else body).encode()

    async def act(writer: asyncio.StreamWriter) -> bool:
        if after_s:
            await asyncio.sleep(after_s)
        return await _write(writer, _head(status, [*headers, ("content-length", str(len(payload)))]) + payload)

    return act


def reply_and(more: bytes) -> Action:
    """A completion on a connection that stays open, with further bytes behind it."""

    async def act(writer: asyncio.StreamWriter) -> bool:
        body = json.dumps(COMPLETION).encode()
        return await _write(writer, _head(200, [("content-length", str(len(body)))]) + body + more)

    return act


def error_reply(status: int, **headers: str) -> Action:
    """An answer of that status with an OpenAI error envelope; underscores in header names become dashes."""
    error = {"error": {"message": f"told {status}", "type": "scripted", "param": None, "code": None}}
    return reply(status, error, headers=[(name.replace("_", "-"), value) for name, value in headers.items()])


def raw(data: bytes, *, reset: bool = False, closes: bool = True) -> Action:
    """Send the bytes and close the connection, optionally with a reset.

    A whole answer must either announce the end (`connection: close`) or not close at all: the client's next
    request would race with it.
    """

    async def act(writer: asyncio.StreamWriter) -> bool:
        await _write(writer, data)
        if reset:
            writer.transport.abort()
        return not closes

    return act


def cut_off(body: bytes) -> Action:
    """The head and this beginning of a longer body."""
    return raw(_head(200, [("content-length", str(len(body) + 100))]) + body)


def chunked(pieces: Iterable[bytes], *, ended: bool = True) -> Action:
    """A body in chunks, with or without the last, empty one."""
    sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    head = _head(200, [("transfer-encoding", "chunked")])
    return raw(head + sent + (b"0\r\n\r\n" if ended else b""), closes=not ended)


def drip(piece: bytes, *, every_s: float) -> Action:
    """A chunked body that never ends, a piece at a time."""
    head = _head(200, [("transfer-encoding", "chunked")])
    return dawdle(head, b"%x\r\n%s\r\n" % (len(piece), piece), every_s=every_s)


def dawdle(first: bytes, piece: bytes, *, every_s: float) -> Action:
    """Send the first bytes, then the piece again and again, without end."""

    async def act(writer: asyncio.StreamWriter) -> bool:
        await _write(writer, first)
        while True:
            await _write(writer, piece)
            await asyncio.sleep(every_s)

    return act


def silence() -> Action:
    """No answer, ever."""

    async def act(writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(3600)
        return False

    return act


def gated(gate: threading.Event) -> Action:
    """A completion, once the gate is open."""

    async def act(writer: asyncio.StreamWriter) -> bool:
        while not gate.is_set():  # noqa: ASYNC110 - the gate belongs to the test's thread
            await asyncio.sleep(0.005)
        return await reply()(writer)

    return act


def sequence(*acts: Action) -> Callable[[Received], Action]:
    """A script that does those in turn, and the last of them from then on."""
    return lambda request: acts[min(request.number, len(acts) - 1)]


def _head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _write(writer: asyncio.StreamWriter, data: bytes) -> bool:
    writer.write(data)
    await writer.drain()
    return not writer.is_closing()
