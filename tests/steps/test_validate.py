"""Validation of input files: each kind of error, and unusual input that is valid."""

import json
import re
from collections.abc import Iterator

import pytest

from batchline.models.settings import load_settings
from batchline.steps import validate_lines as validate_module
from batchline.steps.validate_lines import Validation, detect_endpoint, validate_lines

CHAT = "/v1/chat/completions"
SURROGATE = '"\\ud83d"'


def check(
    text: bytes,
    *,
    endpoint: str | None = CHAT,
    max_errors: int | None = None,
    block_bytes: int = 2**20,
    **settings: object,
) -> Validation:
    """Validate that text as a file."""

    def blocks() -> Iterator[bytes]:
        for at in range(0, len(text), block_bytes):
            yield text[at : at + block_bytes]

    return validate_lines(
        blocks,
        batch_id="batch-0",
        input_key="files/file-0/content.jsonl",
        endpoint=endpoint,
        settings=load_settings(**settings),
        max_errors=max_errors,
    )


def line(custom_id: str = '"a"', *, method: str = '"POST"', url: str = f'"{CHAT}"', body: str = '{"model":"m"}'):
    """A request line whose members are those JSON texts; an empty text leaves the member out."""
    members = {"custom_id": custom_id, "method": method, "url": url, "body": body}
    return ("{" + ",".join(f'"{name}":{text}' for name, text in members.items() if text) + "}").encode()


def found_in(text: bytes, **options: object) -> list[tuple[str | None, int | None, str | None]]:
    return [(error.code, error.line, error.param) for error in check(text, **options).errors]


BAD_LINES = {
    "not json": (b"not json", "invalid_json_line", None, "not JSON.* byte 1"),
    "json cut short": (b'{"custom_id":"a"', "invalid_json_line", None, "ends unexpectedly.* byte 16"),
    "an array": (b"[" + line() + b"]", "invalid_json_line", None, "expected a JSON object, got .*array"),
    "a bare string": (b'"hello"', "invalid_json_line", None, "expected a JSON object, got .*string"),
    "a bare number": (b"12", "invalid_json_line", None, "expected a JSON object, got .*number"),
    "two objects": (line() + b" " + line('"b"'), "invalid_json_line", None, f"not JSON.* byte {len(line()) + 1}"),
    "NaN in the body": (line(body='{"model":"m","x":NaN}'), "invalid_json_line", None, "not JSON"),
    "a trailing comma": (line(body='{"model":"m",}'), "invalid_json_line", None, "comma before the closing }"),
    "a comma behind it": (line() + b",", "invalid_json_line", None, f"comma follows.* byte {len(line())}"),
    "single quotes": (b"{'custom_id': 'a'}", "invalid_json_line", None, "double quotes.* byte 1"),
    "Python's None": (line(body='{"model":None}'), "invalid_json_line", None, "None is Python, JSON has null"),
    "curly quotes": ("{“custom_id”: “a”}".encode(), "invalid_json_line", None, "curly"),
    "a byte-order mark": (b"\xef\xbb\xbf" + line(), "invalid_json_line", None, "byte-order mark"),
    "nothing but a form feed": (b" \x0c ", "invalid_json_line", None, "not JSON"),
    "nothing but a vertical tab": (b"\x0b", "invalid_json_line", None, "not JSON"),
    "a raw NUL between tokens": (line() + b"\0", "invalid_json_line", None, f"NUL at byte {len(line())} "),
    "a raw NUL in a string": (line('"a\0b"'), "invalid_json_line", None, "NUL at byte 15 "),
    "a raw tab in a string": (line('"a\tb"'), "invalid_json_line", None, "not JSON"),
    "invalid UTF-8": (line().replace(b'"m"', b'"\xff"'), "invalid_json_line", None, "UTF-8 at byte .*save"),
    "no custom_id": (line(""), "missing_required_parameter", "custom_id", "custom_id is missing"),
    "no method": (line(method=""), "missing_required_parameter", "method", "method is missing"),
    "no url": (line(url=""), "missing_required_parameter", "url", "url is missing"),
    "no body": (line(body=""), "missing_required_parameter", "body", "body is missing"),
    "no model": (line(body="{}"), "missing_required_parameter", "body.model", "body.model is missing"),
    "custom_id a number": (line("1"), "invalid_value", "custom_id", "number; it must be a string"),
    "custom_id null": (line("null"), "invalid_value", "custom_id", "null; it must be a string"),
    "custom_id empty": (line('""'), "missing_required_parameter", "custom_id", "is empty"),
    "custom_id twice": (
        line('"a","custom_id":"b"'),
        "invalid_value",
        "custom_id",
        "custom_id twice",
    ),
    "method empty": (line(method='""'), "missing_required_parameter", "method", "is empty"),
    "url empty": (line(url='""'), "missing_required_parameter", "url", "is empty"),
    "model empty": (line(body='{"model":""}'), "missing_required_parameter", "body.model", "is empty"),
    "custom_id of 513": (line(f'"{"é" * 513}"'), "invalid_value", "custom_id", "513 .*at most 512"),
    "custom_id lone surrogate": (line(SURROGATE), "invalid_value", "custom_id", "surrogate"),
    "method GET": (line(method='"GET"'), "invalid_value", "method", "'GET'.*are POST"),
    "method lower-case": (line(method='"post"'), "invalid_value", "method", "'post'.*are POST"),
    "method a number": (line(method="1"), "invalid_value", "method", "number.*are POST"),
    "url null": (line(url="null"), "invalid_value", "url", f"must be the endpoint {CHAT}"),
    "body an array": (line(body="[]"), "invalid_value", "body", "array; it must be an object"),
    "body a string": (line(body='"x"'), "invalid_value", "body", "string; it must be an object"),
    "model null": (line(body='{"model":null}'), "invalid_value", "body.model", "null; it must be a string"),
    "model of 257": (line(body=f'{{"model":"{"é" * 257}"}}'), "invalid_value", "body.model", "257 .*at most 256"),
    "arrays 511 deep": (
        line(body=f'{{"model":"m","x":{"[" * 511}{"]" * 511}}}'),
        "invalid_value",
        None,
        "deeper than 512",
    ),
    "a million objects deep": (b'{"a":' * 1_000_000, "invalid_value", None, "deeper than 512"),
    "model lone surrogate": (
        line(body=f'{{"model":{SURROGATE}}}'),
        "invalid_value",
        "body.model",
        "surrogate",
    ),
    "stream a string": (
        line(body='{"model":"m","stream":"yes"}'),
        "invalid_value",
        "body.stream",
        "string; it must be false or left out",
    ),
    "stream true": (
        line(body='{"model":"m","stream":true}'),
        "unsupported_parameter",
        "body.stream",
        "stream is true, .*leave it out",
    ),
    "another endpoint": (
        line(url='"/v1/embeddings"'),
        "mismatched_url",
        "url",
        f"'/v1/embeddings'.*endpoint is {CHAT}",
    ),
    "a url with a host": (
        line(url='"http://elsewhere/v1/chat/completions"'),
        "mismatched_url",
        "url",
        f"endpoint is {CHAT}",
    ),
}


@pytest.mark.parametrize(("bad", "code", "param", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line_gets_one_error_with_code_line_and_advice(bad, code, param, message):
    text = b"\n".join([line('"first"'), b"", b"  \t", bad, line('"last"')])

    found = check(text)

    assert found.plan is None
    assert [(error.code, error.line, error.param) for error in found.errors] == [(code, 4, param)]
    assert re.search(message, found.errors[0].message)


def test_line_with_several_errors_reports_each():
    bad = line('""', method='"GET"', url='"/x"', body='{"stream":true}')

    assert found_in(bad) == [
        ("missing_required_parameter", 1, "custom_id"),
        ("invalid_value", 1, "method"),
        ("mismatched_url", 1, "url"),
        ("missing_required_parameter", 1, "body.model"),
        ("unsupported_parameter", 1, "body.stream"),
    ]


def test_empty_object_misses_all_four_fields():
    assert found_in(b"{}") == [
        ("missing_required_parameter", 1, name) for name in ("custom_id", "method", "url", "body")
    ]


def test_invalid_utf8_is_located_by_line_and_file_offset():
    before = line('"é"') + b"\r\n\n"
    bad = line('"b"').replace(b"b", b"\xff")

    (error,) = check(before + bad).errors

    at = bad.index(b"\xff")
    assert (error.line, error.code) == (3, "invalid_json_line")
    assert f"byte {at} of the line (byte {len(before) + at} of the file)" in error.message


def test_byte_order_mark_counts_in_the_file_offset_of_invalid_utf8():
    text = b"\xef\xbb\xbf" + line().replace(b'"m"', b'"\xff"')

    (error,) = check(text).errors

    assert f"byte {text.index(0xFF)} of the file" in error.message


@pytest.mark.parametrize("custom_id", ["x", "é" * 512, "\U0001f600" * 512, "a b\\n\\u0000"], ids=repr)
def test_custom_id_of_1_to_512_characters_is_valid(custom_id):
    assert check(line(f'"{custom_id}"')).errors == []


@pytest.mark.parametrize("stream", ["false", "null"])
def test_stream_false_or_null_is_valid(stream):
    assert check(line(body=f'{{"model":"m","stream":{stream}}}')).errors == []


def test_moderation_without_model_is_valid():
    url = "/v1/moderations"

    found = check(line(url=f'"{url}"', body='{"input":"x"}'), endpoint=url)

    assert found.plan is not None
    assert (found.plan.total, found.plan.models) == (1, [])


TWO_LISTS = [
    {"name": "a", "base_url": "http://localhost:1", "models": ["m1"]},
    {"name": "b", "base_url": "http://localhost:2", "models": ["m2", "m3"]},
]
FILE_OF_MODELS = b"\n".join(line(f'"{model}"', body=f'{{"model":"{model}"}}') for model in ("m1", "x", "m3"))


def test_model_listed_by_no_upstream_is_rejected():
    assert found_in(FILE_OF_MODELS, upstreams=TWO_LISTS) == [("unknown_model", 2, "body.model")]


def test_unknown_model_message_names_the_model():
    assert "'x'" in check(FILE_OF_MODELS, upstreams=TWO_LISTS).errors[0].message


def test_upstream_without_model_list_accepts_every_model():
    servers = [*TWO_LISTS, {"name": "c", "base_url": "http://localhost:3"}]

    assert check(FILE_OF_MODELS, upstreams=servers).errors == []


def test_plan_lists_every_model_of_the_file():
    plan = check(FILE_OF_MODELS).plan

    assert plan is not None
    assert plan.models == ["m1", "m3", "x"]


def test_file_with_over_1000_models_gets_an_error_for_each_more():
    text = b"\n".join(line(f'"{number}"', body=f'{{"model":"m{number % 1_002}"}}') for number in range(1_500))

    assert found_in(text) == [("invalid_value", line, "body.model") for line in (1_001, 1_002)]


@pytest.mark.parametrize("text", [b"", b"\n", b"\r\n \n\t\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n\n"], ids=repr)
def test_file_without_requests_is_rejected_as_empty(text):
    assert found_in(text) == [("empty_file", None, None)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"], ids=repr)
def test_line_of_exactly_the_limit_is_valid(end):
    assert check(line() + end, max_line_bytes=len(line() + end.rstrip(b"\n"))).errors == []


@pytest.mark.parametrize("block_bytes", [1, 7, 2**20])
def test_line_over_limit_is_reported_with_its_number_and_both_sizes(block_bytes):
    good, bad = line(), line('"b"', body='{"model":"m","x":1}')
    text = b"\n".join([good, b"", bad, good])

    (error, *others) = check(text, max_line_bytes=len(good), block_bytes=block_bytes).errors

    assert (error.code, error.line) == ("request_too_large", 3)
    assert f"{len(bad)} bytes; at most {len(good)}" in error.message
    assert [other.code for other in others] == ["duplicate_custom_id"]


def test_request_limit_ignores_blank_lines():
    text = b"\n\n".join(line(f'"{number}"') for number in range(3))

    assert check(text, max_requests=3).errors == []


def test_file_over_request_limit_gets_one_error():
    text = b"\n".join(line(f'"{number}"') for number in range(1_200))

    assert found_in(text, max_requests=3) == [("too_many_requests", None, None)]


def test_file_over_size_limit_gets_one_error():
    text = b"\n".join(line(f'"{number}"') for number in range(1_200))

    assert found_in(text, max_file_bytes=len(text) - 1) == [("file_too_large", None, None)]


def test_file_of_exactly_the_size_limit_is_valid():
    assert check(line() + b"\n", max_file_bytes=len(line()) + 1).errors == []


def test_duplicate_custom_id_names_the_first_line():
    text = b"\n".join([b"", line('"b"'), line(), line(), b"", line()])

    found = check(text)

    assert [(error.code, error.line, error.param) for error in found.errors] == [
        ("duplicate_custom_id", 4, "custom_id"),
        ("duplicate_custom_id", 6, "custom_id"),
    ]
    assert all("line 3" in error.message for error in found.errors)


@pytest.mark.parametrize(
    ("one", "other"), [('"a"', '"\\u0061"'), ('"/"', '"\\/"'), ('"\U0001f600"', '"\\uD83D\\ude00"')]
)
def test_custom_id_with_other_escapes_is_a_duplicate(one, other):
    assert found_in(line(one) + b"\n" + line(other)) == [("duplicate_custom_id", 2, "custom_id")]


def test_duplicate_of_a_bad_line_is_reported():
    text = line(method='"GET"') + b"\n" + line()

    assert found_in(text) == [("invalid_value", 1, "method"), ("duplicate_custom_id", 2, "custom_id")]


def test_duplicate_far_down_a_large_file_is_reported():
    text = b"\n".join(line(f'"{number % 50_001}"') for number in range(50_002))

    assert found_in(text) == [("duplicate_custom_id", 50_002, "custom_id")]


def test_custom_ids_with_equal_hashes_are_not_duplicates(monkeypatch):
    monkeypatch.setattr(validate_module, "hash", lambda text: 7, raising=False)
    text = b"\n".join(line(f'"{number % 9}"') for number in range(10))

    assert found_in(text) == [("duplicate_custom_id", 10, "custom_id")]


def test_errors_beyond_the_limit_are_counted_in_the_last_entry():
    found = check(b"bad\n" * 10_000, max_errors=1_000)

    *told, last = found.errors
    assert [error.line for error in told] == list(range(1, 1_000))
    assert last.code == "too_many_errors"
    assert "9,001 more" in last.message
    assert found.error_count == 10_000


def test_errors_up_to_the_limit_are_all_reported():
    assert [error.code for error in check(b"bad\n" * 5, max_errors=5).errors] == ["invalid_json_line"] * 5


def test_errors_without_limit_are_all_reported():
    assert [error.line for error in check(b"bad\n" * 2_000).errors] == list(range(1, 2_001))


FINE_BODIES = {
    "a duplicate key": '{"model":"m","x":1,"x":2}',
    "a number beyond a double": '{"model":"m","x":1e400}',
    "a 400-digit integer": f'{{"model":"m","x":{"9" * 400}}}',
    "arrays 510 deep": f'{{"model":"m","x":{"[" * 510}{"]" * 510}}}',
    "objects 510 deep": '{"model":"m","x":' + '{"a":' * 510 + "1" + "}" * 511,
    "a million brackets in a string": f'{{"model":"m","x":"{"[{" * 500_000}"}}',
    "a name of 256 characters": f'{{"model":"{"é" * 256}"}}',
    "an escaped lone surrogate": '{"model":"m","x":"\\ud800"}',
    "an escaped lone surrogate in a key": '{"model":"m","\\udfff":1}',
    "text beyond the BMP": '{"model":"m","x":"\U0001f600\U00020000"}',
    "unusual separators": '{"model":"m","x":"\u2028\u2029\u0085\\u0000"}',
    "a second model that counts": '{"model":1,"model":"m"}',
    "an escaped key": '{"mod\\u0065l":"m"}',
    "spaces between tokens": '{ "model"\t:\r "m" }',
}


@pytest.mark.parametrize("body", FINE_BODIES.values(), ids=FINE_BODIES)
def test_unusual_body_is_valid(body):
    assert check(line(body=body)).errors == []


FINE_FILES = {
    "a byte-order mark": (b"\xef\xbb\xbf" + line() + b"\n", 1),
    "CRLF": (line() + b"\r\n" + line('"b"') + b"\r\n", 2),
    "no last newline": (line() + b"\n" + line('"b"'), 2),
    "blank lines": (b"\n \r\n" + line() + b"\n\n\t\n" + line('"b"') + b"\n\n", 2),
    "a byte-order mark before a blank line": (b"\xef\xbb\xbf\r\n" + line(), 1),
}


@pytest.mark.parametrize(("text", "total"), FINE_FILES.values(), ids=FINE_FILES)
def test_unusual_file_layout_is_valid_and_counts_every_request(text, total):
    found = check(text)

    assert found.errors == []
    assert found.plan is not None
    assert (found.plan.total, found.plan.size_bytes) == (total, len(text))


def test_endpoint_is_detected_from_the_first_allowed_url():
    text = b"\n".join([b"bad", line(url='"/x"'), line(url='"/v1/embeddings"'), line()])

    assert detect_endpoint(iter([text]), settings=load_settings()) == "/v1/embeddings"


def test_error_messages_stay_short_for_long_values():
    long = json.dumps("x" * 5_000)
    text = line(long, method=long, url=long, body=f'{{"model":{long}}}') + b"\n" + line('"' + "y" * 512 + '"') * 2

    errors = check(text, upstreams=TWO_LISTS).errors

    assert len(errors) == 5
    assert max(len(error.message) for error in errors) < 300
