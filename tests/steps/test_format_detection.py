"""Files in another format get one error that names it, and lines that are not JSON are explained."""

import gzip
import io
import json
import re
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_validate import check, line

LINES = 300
CHAT_BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
REQUESTS = [
    {"custom_id": f"r-{n}", "method": "POST", "url": "/v1/chat/completions", "body": CHAT_BODY}
    for n in range(LINES)
]


def jsonl(*make) -> bytes:
    """Return one line for each number, made by the functions in turn."""
    return "".join(json.dumps(each(n)) + "\n" for n in range(LINES) for each in make).encode()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"custom_id": ["a", "b"], "prompt": ["x", "y"]}), file)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("requests.jsonl", jsonl(lambda n: REQUESTS[n]))
    return file.getvalue()


GOOD = jsonl(lambda n: REQUESTS[n])
GEMINI = {"contents": [{"parts": [{"text": "Hi"}]}]}
FOREIGN = {
    "a JSON array": (json.dumps(REQUESTS).encode(), "JSON array.*jq -c '.\\[\\]'"),
    "an indented JSON array": (json.dumps(REQUESTS, indent=2).encode(), "JSON array"),
    "a long JSON array": (json.dumps(REQUESTS * 40).encode(), "JSON array"),
    "pretty-printed requests": ("\n".join(json.dumps(each, indent=2) for each in REQUESTS).encode(), "jq -c . "),
    "a pretty-printed object longer than the head": (json.dumps({"a": REQUESTS * 40}, indent=1).encode(), "jq"),
    "CSV": (b"custom_id,prompt\n" + b"a,Hello\nb,World\n" * LINES, "CSV table"),
    "CSV with quotes": (b'"custom_id","prompt"\n' + b'"a","Hello, you"\n' * LINES, "CSV table"),
    "CSV with semicolons": (b"custom_id;prompt\n" + b"a;Hello\n" * LINES, "CSV table"),
    "TSV": (b"custom_id\tprompt\n" + b"a\tHello\n" * LINES, "CSV table"),
    "Parquet": (parquet(), "Parquet"),
    "a zip archive": (zipped(), "zip archive"),
    "gzip under another name": (gzip.compress(GOOD), r"gzip.*\.jsonl\.gz"),
    "UTF-16 with a mark": (GOOD.decode().encode("utf-16"), "UTF-16.*iconv"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-le"), "UTF-16"),
    "big-endian UTF-16": (GOOD.decode().encode("utf-16-be"), "UTF-16"),
    "a comma behind each line": (GOOD.replace(b"}\n", b"},\n"), "ends with a comma"),
    "Python dictionaries": ("\n".join(map(repr, REQUESTS)).encode(), "Python dictionaries.*json.dumps"),
    "Anthropic": (jsonl(lambda n: {"custom_id": f"r-{n}", "params": CHAT_BODY}), "Anthropic.*body: .params"),
    "Gemini": (jsonl(lambda n: {"key": f"r-{n}", "request": GEMINI}), "Gemini"),
    "Vertex": (jsonl(lambda _: {"request": GEMINI}), "Gemini"),
    "Bedrock": (jsonl(lambda n: {"recordId": f"r{n}", "modelInput": CHAT_BODY}), "Bedrock"),
    "Mistral": (
        jsonl(lambda n: {"custom_id": str(n), "body": {"messages": []}}),
        "Mistral.*Fireworks.*method.*url",
    ),
    "bare bodies": (jsonl(lambda _: CHAT_BODY), "bare request bodies"),
    "an output file": (
        jsonl(lambda n: {"id": "x", "custom_id": str(n), "response": {}, "error": None}),
        "results",
    ),
}


@pytest.mark.parametrize(("text", "message"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", None])
def test_file_in_foreign_format_gets_one_error_naming_the_format(text, message, endpoint):
    found = check(text, endpoint=endpoint)

    assert found.plan is None
    assert (found.error_count, [error.line for error in found.errors]) == (1, [1])
    assert found.errors[0].code in {"invalid_json_line", "missing_required_parameter"}
    assert re.search(message, found.errors[0].message)


MIXED = {
    "an array among requests": (b"[1, 2]\n" + GOOD, [1]),
    "a line of Anthropic's among requests": (GOOD + b'{"custom_id":"x","params":{}}\n', [LINES + 1] * 3),
    "another service's first line": (b'{"custom_id":"x","params":{}}\n' + GOOD, [1] * 3),
    "a comma behind one line": (GOOD.replace(b"}\n", b"},\n", 1), [1]),
    "text with commas": (b"Hello, you\n" + GOOD, [1]),
}


@pytest.mark.parametrize(("text", "lines"), MIXED.values(), ids=MIXED)
def test_file_with_some_foreign_lines_is_checked_line_by_line(text, lines):
    assert [error.line for error in check(text).errors] == lines


def test_windows_1252_text_is_reported_on_each_affected_line():
    text = b"\n".join([line('"a"'), line('"é"').decode().encode("cp1252"), line('"ü"').decode().encode("cp1252")])

    errors = check(text).errors

    assert [error.line for error in errors] == [2, 3]
    assert all("Windows-1252" in error.message and "byte 14 of the line" in error.message for error in errors)


def test_body_with_its_own_custom_id_is_valid():
    text = line(body='{"model":"m","metadata":{"custom_id":"a"}}')
    assert check(text).errors == []
