"""Requests as they reach the upstream: each body once, byte for byte, from its own line."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.batch_assertions import new_batch
from helpers.recording_upstream import RecordingUpstream, recording_upstream

from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.settings import load_settings
from batchline.models.status import BatchStatus
from batchline.models.upstreams import Upstream
from batchline.storage.objects import layout
from batchline.storage.objects.select import open_objects
from batchline.storage.records.store import BatchRecord, open_records

CHAT = "/v1/chat/completions"


@pytest.fixture
def recorder() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        yield server


def run_text(services: Services, text: bytes, endpoint: str = CHAT) -> BatchRecord:
    path = Path("input.jsonl")
    path.write_bytes(text)
    return run_local(services, new_batch(services, path, endpoint=endpoint).id)


def line(custom_id: str, body: str, endpoint: str = CHAT) -> bytes:
    return f'{{"custom_id":{custom_id},"method":"POST","url":"{endpoint}","body":{body}}}'.encode()


BODIES = {
    "keys out of order": '{"z":1,"a":2,"model":"m"}',
    "a duplicate key": '{"model":"m","x":1,"x":2}',
    "a number beyond a double": '{"model":"m","x":1e400,"y":1.50,"z":-0}',
    "a 400-digit integer": f'{{"model":"m","x":{"9" * 400}}}',
    "arrays 510 deep": f'{{"model":"m","x":{"[" * 510}{"]" * 510}}}',
    "objects 510 deep": '{"model":"m","x":' + '{"a":' * 510 + "1" + "}" * 511,
    "escapes": '{"model":"m","x":"\\u0061\\/\\ud800\\n\\u0000"}',
    "text beyond the BMP": '{"model":"m","x":"\U0001f600\U00020000\u2028"}',
    "spaces": '{ "model" :\t"m" , "x" : [ ]\r}',
    "an escaped key": '{"mod\\u0065l":"m"}',
    "names that a line has too": '{"custom_id":"x","body":{"body":1},"model":"m"}',
    "large": f'{{"model":"m","x":"{"é" * 300_000}"}}',
}


def test_request_body_is_sent_byte_for_byte(recorder, make_services):
    services = make_services(recorder.base_url)
    lines = [line(json.dumps(name), body) for name, body in BODIES.items()]

    batch = run_text(services, b"\n".join(lines))

    assert batch.status is BatchStatus.COMPLETED
    assert Counter(recorder.sent) == Counter((CHAT, body.encode()) for body in BODIES.values())


LAYOUTS: dict[str, Callable[[list[bytes]], bytes]] = {
    "plain": lambda lines: b"\n".join(lines) + b"\n",
    "no last newline": b"\n".join,
    "CRLF": lambda lines: b"\r\n".join(lines) + b"\r\n",
    "a byte-order mark": lambda lines: b"\xef\xbb\xbf" + b"\n".join(lines),
    "a byte-order mark before a blank line": lambda lines: b"\xef\xbb\xbf\r\n" + b"\r\n".join(lines),
    "blank lines all over": lambda lines: b"\n \n" + b"\n\n\t\r\n".join(lines) + b"\n\n\n",
    "many blank lines first": lambda lines: b"\n" * 1_200 + b"\n".join(lines),
}


@pytest.mark.parametrize("chunk_requests", [1, 3, 1_000])
@pytest.mark.parametrize("layout_of", LAYOUTS.values(), ids=LAYOUTS)
def test_request_is_sent_once_whatever_the_file_layout(layout_of, chunk_requests, recorder, make_services):
    services = make_services(recorder.base_url, chunk_requests=chunk_requests)
    bodies = [f'{{"model":"m","n":{number}}}' for number in range(10)]
    text = layout_of([line(f'"id-{number}"', body) for number, body in enumerate(bodies)])

    batch = run_text(services, text)

    numbers = [number for number, each in enumerate(text.split(b"\n"), 1) if b"custom_id" in each]
    output = [json.loads(each) for each in services.store.read(layout.output_key(batch.id)).splitlines()]
    assert Counter(recorder.sent) == Counter((CHAT, body.encode()) for body in bodies)
    assert [(each["custom_id"], int(each["id"].rpartition("-")[2])) for each in output] == [
        (f"id-{number}", at) for number, at in enumerate(numbers)
    ]


CUSTOM_IDS = [
    '"é"',
    '"\\u00e9\\n\\"\\\\"',
    '"\U0001f600"',
    '"\\ud83d\\ude01"',
    '" a "',
    f'"{"é" * 512}"',
    '"\\u0000"',
]


def test_custom_ids_are_returned_unchanged(recorder, make_services):
    services = make_services(recorder.base_url)

    batch = run_text(services, b"\n".join(line(custom_id, '{"model":"m"}') for custom_id in CUSTOM_IDS))

    lines = services.store.read(layout.output_key(batch.id)).splitlines()
    assert [json.loads(each)["custom_id"] for each in lines] == [json.loads(each) for each in CUSTOM_IDS]


@pytest.fixture
def second() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        yield server


def test_request_is_sent_to_the_upstream_serving_its_model(recorder, second):
    bodies = [
        '{"model":"m1"}',
        '{"model":"m2"}',
        '{"model":"x","mod\\u0065l":"m1"}',
        '{"x":"\\ud800","model":"m1"}',
    ]
    chosen = load_settings(
        upstreams=[
            Upstream(name="first", base_url=recorder.base_url, models=frozenset({"m1"})),
            Upstream(name="second", base_url=second.base_url),
        ]
    )
    services = Services(settings=chosen, store=open_objects(chosen), records=open_records(chosen))
    with contextlib.closing(services.records), contextlib.closing(services.dispatcher):
        run_text(services, b"\n".join(line(f'"{number}"', body) for number, body in enumerate(bodies)))

    assert sorted(recorder.sent) == sorted((CHAT, bodies[at].encode()) for at in (0, 2, 3))
    assert second.sent == [(CHAT, bodies[1].encode())]


def test_moderation_without_model_is_sent_unchanged(recorder, make_services):
    url = "/v1/moderations"

    batch = run_text(make_services(recorder.base_url), line('"a"', '{"input":"x"}', url), url)

    assert batch.status is BatchStatus.COMPLETED
    assert recorder.sent == [(url, b'{"input":"x"}')]
