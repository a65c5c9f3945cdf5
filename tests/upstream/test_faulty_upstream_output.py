"""Whole batches against upstreams that misbehave: what ends up in storage."""

from collections.abc import Callable
from pathlib import Path

from helpers.batch_assertions import new_batch
from helpers.scripted_server import raw, reply

from batchline.engine.pipeline import run_local
from batchline.storage.objects import layout


def test_response_is_stored_with_line_breaks_as_spaces(
    serve: Callable, make_services: Callable, chat_file: Callable
) -> None:
    choices = b'[{"message": {"content": "Yes."}}]'
    text = b'{"b": 1.10,\n "a": [12345678901234567890123, "\\ud800"],\r\n "choices": %b, "a": 2}' % choices
    services = make_services(serve(lambda _: reply(200, text)).base_url)

    batch = run_local(services, new_batch(services, chat_file(1)).id)

    [line] = services.store.read(layout.output_key(batch.id)).splitlines()
    assert b'"body":' + text.replace(b"\n", b" ").replace(b"\r", b" ") in line


def test_upstream_key_is_in_no_file_of_the_batch(
    serve: Callable, make_services: Callable, chat_file: Callable, tmp_path: Path
) -> None:
    echo = {"error": {"message": "the key sk-very-secret may not do this"}}
    acts = [reply(), reply(400, echo), reply(500, echo), reply(200, echo), raw(b"")]
    server = serve(lambda request: acts[request.number % 5])
    services = make_services(server.base_url, upstream={"api_key": "sk-very-secret", "max_attempts": 2})

    run_local(services, new_batch(services, chat_file(40)).id)

    assert server.received[0].headers["authorization"] == "Bearer sk-very-secret"
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) > 3
    assert [path.name for path in left if b"sk-very-secret" in path.read_bytes()] == []
