"""Servers that misbehave on demand, and callers to call them with."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from helpers.dispatcher_calls import call_all, make_bodies
from helpers.scripted_server import Action, Received, ScriptedServer
from helpers.scripted_server import gated as held_back

from batchline.models.upstreams import Upstream
from batchline.upstream.call_results import CallResult
from batchline.upstream.dispatcher import Dispatcher
from batchline.upstream.transports.base import TransportFactory
from batchline.upstream.transports.select import open_transport


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Received], Action]], ScriptedServer]]:
    """Start servers that do what a script says; they end with the test."""
    started: list[ScriptedServer] = []

    def start(script: Callable[[Received], Action], **options: bool) -> ScriptedServer:
        server = ScriptedServer(script, **options).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def transport() -> TransportFactory:
    """The transport of dispatchers; a module that tests several transports overrides this fixture."""
    return open_transport


@pytest.fixture
def make_dispatcher(transport: TransportFactory) -> Iterator[Callable[..., Dispatcher]]:
    """Make callers of upstreams with quick retries; they are closed with the test."""
    made: list[Dispatcher] = []

    def make(*base_urls: str, upstreams: Sequence[Upstream] = (), **options: object) -> Dispatcher:
        quick = {"backoff_base_s": 0.01, "backoff_cap_s": 0.05, **options}
        servers = [*upstreams, *(Upstream.model_validate({"base_url": url, **quick}) for url in base_urls)]
        dispatcher = Dispatcher(servers, open_transport=transport)
        made.append(dispatcher)
        return dispatcher

    yield make
    for dispatcher in made:
        dispatcher.close()


@pytest.fixture
def call_one(
    make_dispatcher: Callable[..., Dispatcher], serve: Callable[..., ScriptedServer]
) -> Callable[..., CallResult]:
    """The answer to one request from a server with that script, by an upstream with those options."""

    def call(
        script: Callable[[Received], Action], *, path: str = "/v1/chat/completions", **options: object
    ) -> CallResult:
        dispatcher = make_dispatcher(serve(script).base_url, **options)
        [answer] = call_all(dispatcher, make_bodies(1), endpoint=path)
        return answer

    return call


@pytest.fixture
def gate() -> threading.Event:
    """Opened, lets a `gated` server answer."""
    return threading.Event()


@pytest.fixture
def gated(serve: Callable, gate: threading.Event) -> ScriptedServer:
    """A server that answers nothing until the gate is open."""
    return serve(lambda _: held_back(gate))
