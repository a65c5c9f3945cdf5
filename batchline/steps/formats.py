"""Recognise input files that are not batch JSONL at all, and explain why a line is not JSON.

A file in another format gets one error that names the format and the next step, instead of an error a line. Only
its first bytes are read for that: a file whose first lines are batch requests is checked line by line.
"""

import csv
import json
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from batchline.models.batches import BatchError
from batchline.models.json_scan import is_json

HEAD_BYTES: Final = 2**20
SAMPLED_LINES: Final = 20
BLANKS: Final = b" \t\r\n"

_SIGNATURES: Final = (
    (b"PAR1", "a Parquet file; write each row as one JSON object a line"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet); unpack it and give the JSONL file in it"),
    (b"\x1f\x8b", "compressed with gzip; let its name end in .jsonl.gz, or decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; let its name end in .jsonl.zst, or decompress it"),
    (b"BZh", "compressed with bzip2; decompress it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed with xz; decompress it with unxz"),
    (b"ARROW1", "an Arrow file; write each row as one JSON object a line"),
    (b"SQLite format 3\0", "an SQLite database; write each request as one JSON object a line"),
)
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_JSONL: Final = "a batch file has one JSON object a line"
_SHAPE: Final = "here a line has custom_id, method, url and body"
_PYTHON_WORDS: Final = {b"True": "true", b"False": "false", b"None": "null"}
_WORD: Final = re.compile(rb"[A-Za-z]+")


def foreign_format(head: bytes, *, is_whole: bool) -> BatchError | None:
    """Return the one error of a file in another format, or None if its first lines may be batch requests.

    `head` is the start of the decompressed file; `is_whole` is true if that is all of it.
    """
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return _not_json(f"the file is {words}")
    if _is_utf16(head):
        return _not_json(
            "the file is UTF-16, as PowerShell and some editors write it; convert it to UTF-8: "
            "iconv -f UTF-16 -t UTF-8 FILE > NEW"
        )
    head = head.removeprefix(b"\xef\xbb\xbf")
    lines = _lines(head, is_whole=is_whole)
    number, first = next(((n, line) for n, line in enumerate(lines, 1) if line), (1, head[:SAMPLED_LINES]))
    found = _read(first)
    sample = [line for line in lines if line][:SAMPLED_LINES]
    if isinstance(found, dict):
        return _foreign_shape(sample, number)
    if words := _foreign_text(found, head, sample, is_whole=is_whole):
        return _not_json(words, line=number)
    return None


def _not_json(message: str, *, line: int = 1) -> BatchError:
    return BatchError(code="invalid_json_line", line=line, message=message)


def _is_utf16(head: bytes) -> bool:
    """True for a byte-order mark of UTF-16, or if every other byte of the first ones is NUL."""
    if head.startswith(_UTF16_MARKS):
        return True
    some = head[:64]
    even, odd = some[::2], some[1::2]
    return len(some) >= 4 and (not any(even) or not any(odd)) and any(some)


def _lines(head: bytes, *, is_whole: bool) -> list[bytes]:
    """The whole lines of the head without the blanks around them."""
    lines = head.split(b"\n")
    if not is_whole:
        lines.pop()
    return [line.strip(BLANKS) for line in lines]


def _read(line: bytes) -> Any:
    """Return the decoded JSON, or None if the text is not JSON or too deep to be read."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _foreign_text(found: Any, head: bytes, sample: Sequence[bytes], *, is_whole: bool) -> str:
    """Name the format of a file whose first line is not an object; empty if it is none that is known."""
    start = head.lstrip(BLANKS)
    if start.startswith(b"["):
        if found is None or (len(sample) == 1 and is_whole):
            return f"the file is a JSON array; {_JSONL}: jq -c '.[]' FILE > NEW.jsonl"
        return ""
    if start.startswith(b"{"):
        return _broken_objects(start, sample, is_whole=is_whole)
    return f"the file looks like a CSV table; {_JSONL}" if _is_table(sample) else ""


def _broken_objects(start: bytes, sample: Sequence[bytes], *, is_whole: bool) -> str:
    """Name what is wrong with every line of a file that begins with a brace."""
    if sample and all(line.startswith(b"{'") for line in sample):
        return "the lines are Python dictionaries, not JSON (single quotes); write them with json.dumps()"
    if sample and all(line.endswith(b"},") and _read(line[:-1]) is not None for line in sample):
        return "every line ends with a comma; remove them: sed 's/},[[:space:]]*$/}/' FILE > NEW.jsonl"
    if _spans_lines(start, is_whole=is_whole):
        return f"the JSON is spread over several lines; {_JSONL}: jq -c . FILE > NEW.jsonl"
    return ""


def _spans_lines(start: bytes, *, is_whole: bool) -> bool:
    """True if the first object goes on over a line's end: pretty-printed JSON."""
    line, newline, rest = start.partition(b"\n")
    if not newline or _read(line) is not None:
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(start.decode(errors="replace"))
    except json.JSONDecodeError:
        # An object longer than the head cannot be read; a line of nothing but its brace says enough.
        return not is_whole and line.strip(BLANKS) == b"{" and rest.lstrip(BLANKS).startswith(b'"')
    except (ValueError, RecursionError):
        return False
    return b"\n" in start.decode(errors="replace")[:end].encode()


def _is_table(sample: Sequence[bytes]) -> bool:
    """True if the lines have the same number of fields, more than one, and none is JSON."""
    if len(sample) < 2 or any(line.startswith((b"{", b"[")) for line in sample):
        return False
    texts = [line.decode(errors="replace") for line in sample]
    for delimiter in (",", "\t", ";"):
        try:
            rows = list(csv.reader(texts[:2], delimiter=delimiter))
        except csv.Error:
            continue
        if len(rows) == 2 and len(rows[0]) == len(rows[1]) > 1:
            return True
    return False


def _foreign_shape(sample: Sequence[bytes], number: int) -> BatchError | None:
    """The error of a file whose first lines all are requests of another service, or None."""
    found = {_service(_read(line)) for line in sample}
    if len(found) != 1 or not (words := found.pop()):
        return None
    param, message = words
    return BatchError(code="missing_required_parameter", line=number, message=message, param=param)


def _service(line: Any) -> tuple[str, str] | None:
    """The missing parameter and the words for a line in another service's format."""
    if not isinstance(line, dict) or "method" in line or "url" in line:
        return None
    names = line.keys()
    for needed, param, words in _SHAPES:
        if needed <= names:
            return param, f"the file {words}"
    return None


_BODIES: Final = "its bodies must be rewritten as well, as those of the endpoint that you call"
_SHAPES: Final = (
    (
        {"custom_id", "params"},
        "body",
        f"is in the format of Anthropic's Message Batches (params); {_SHAPE}: "
        """jq -c '{custom_id, method: "POST", url: "/v1/messages", body: .params}' FILE > NEW.jsonl""",
    ),
    (
        {"recordId", "modelInput"},
        "body",
        f"is in the format of Amazon Bedrock (recordId, modelInput); {_SHAPE}; body names its model; {_BODIES}",
    ),
    (
        {"request", "key"},
        "body",
        f"is in the format of Gemini's batches (key, request); {_SHAPE}; {_BODIES} (contents become messages)",
    ),
    (
        {"request"},
        "body",
        f"is in the format of Gemini's batches (request); {_SHAPE}; {_BODIES} (contents become messages)",
    ),
    ({"contents"}, "body", f"has bodies of Gemini's API (contents); {_SHAPE}; {_BODIES}"),
    (
        {"custom_id", "body"},
        "url",
        "is in the format of Mistral's or Fireworks's batches (no method, no url); add them, and the model to "
        """each body: jq -c '. + {method: "POST", url: "/v1/chat/completions"} | .body.model //= "MODEL"' """
        "FILE > NEW.jsonl",
    ),
    (
        {"custom_id", "response"},
        "body",
        f"holds the results of a batch, not requests; {_SHAPE}; give the file that the batch was made of",
    ),
    ({"messages"}, "body", f"holds bare request bodies (messages); {_SHAPE}; put each one in its body"),
    ({"prompt"}, "body", f"holds bare request bodies (prompt); {_SHAPE}; put each one in its body"),
)


def why_not_json(line: bytes, offset: int) -> str:
    """Explain in words why the line is not JSON at that byte, for its error message."""
    rest, before = line[offset : offset + 20], line[:offset].rstrip(BLANKS)
    if not rest.strip(BLANKS):
        return f"it breaks off at byte {offset} of the line"
    word = _WORD.match(rest)
    if word and word[0] in _PYTHON_WORDS:
        reason = f"{word[0].decode()} is Python, JSON has {_PYTHON_WORDS[word[0]]},"
    elif word and word[0] in {b"NaN", b"Infinity", b"undefined"}:
        reason = f"{word[0].decode()} is no JSON value,"
    elif rest.startswith(b"'"):
        reason = "strings need double quotes, there is a single one"
    elif rest.startswith((b"\xe2\x80\x9c", b"\xe2\x80\x9d")):
        reason = "strings need straight quotes, there is a curly one"
    elif rest[:1] in {b"}", b"]"} and before.endswith(b","):
        reason = f"there is a comma before the closing {rest[:1].decode()}"
    elif before.endswith(b"}") and is_json(before):
        reason = "a comma follows the object" if rest.startswith(b",") else "more follows the object"
    else:
        reason = "it goes wrong"
    return f"{reason} at byte {offset} of the line"


def is_windows_text(line: bytes) -> bool:
    """True if the line looks like Windows-1252 (or Latin-1): nothing in it is UTF-8 beyond ASCII."""
    return line.decode(errors="ignore").isascii()
