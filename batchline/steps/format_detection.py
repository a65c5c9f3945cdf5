"""Recognises input files in other formats, and explains why a line is not JSON.

A file in another format gets a single error that names the format and the next step, instead of one per line.
Only its first bytes are read for that: a file whose first lines are batch requests is checked line by line.
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
MAX_SAMPLED_LINES: Final = 20
WHITESPACE: Final = b" \t\r\n"

_SIGNATURES: Final = (
    (b"PAR1", "a Parquet file; write each row as one JSON object per line"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet); unpack it and use the JSONL file in it"),
    (b"\x1f\x8b", "compressed with gzip; give it a name that ends in .jsonl.gz, or decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; give it a name that ends in .jsonl.zst, or decompress it"),
    (b"BZh", "compressed with bzip2; decompress it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed with xz; decompress it with unxz"),
    (b"ARROW1", "an Arrow file; write each row as one JSON object per line"),
    (b"SQLite format 3\0", "an SQLite database; write each request as one JSON object per line"),
)
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_JSONL_HINT: Final = "a batch file has one JSON object per line"
_SHAPE_HINT: Final = "each line needs custom_id, method, url and body"
_PYTHON_WORDS: Final = {b"True": "true", b"False": "false", b"None": "null"}
_WORD_PATTERN: Final = re.compile(rb"[A-Za-z]+")


def detect_foreign_format(head: bytes, *, is_whole: bool) -> BatchError | None:
    """Return the error of a file in another format, or None; `head` is its start, or all of it if `is_whole`."""
    description = next((text for signature, text in _SIGNATURES if head.startswith(signature)), None)
    # UTF-16 without a byte-order mark has NUL in every other one of its first bytes.
    start = head[:64]
    is_half_nul = len(start) >= 4 and any(start) and not (any(start[::2]) and any(start[1::2]))
    if description is None and (head.startswith(_UTF16_MARKS) or is_half_nul):
        description = (
            "UTF-16, as PowerShell and some editors write it; convert it to UTF-8: "
            "iconv -f UTF-16 -t UTF-8 FILE > NEW"
        )
    if description is not None:
        return BatchError(code="invalid_json_line", line=1, message=f"the file is {description}")
    head = head.removeprefix(b"\xef\xbb\xbf")
    # The last line of the head may be incomplete.
    complete_lines = head.split(b"\n")[: None if is_whole else -1]
    lines = [(number, text) for number, line in enumerate(complete_lines, 1) if (text := line.strip(WHITESPACE))]
    number, first = next(iter(lines), (1, head[:MAX_SAMPLED_LINES]))
    sample = [line for _, line in lines[:MAX_SAMPLED_LINES]]
    value = _decode_json(first)
    if not isinstance(value, dict):
        message = _describe_text(value, head, sample, is_whole=is_whole)
        return BatchError(code="invalid_json_line", line=number, message=message) if message else None
    # Only if the lines are requests of one other service.
    services = {_describe_service(_decode_json(line)) for line in sample}
    if len(services) != 1 or not (service := services.pop()):
        return None
    param, message = service
    return BatchError(code="missing_required_parameter", line=number, message=message, param=param)


def _decode_json(line: bytes) -> Any:
    """Return the decoded JSON, or None if the text is not JSON or nested too deeply."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _describe_text(value: Any, head: bytes, sample: Sequence[bytes], *, is_whole: bool) -> str:
    """Describe the format of a file whose first line is not an object; empty if it is unknown."""
    start = head.lstrip(WHITESPACE)
    if start.startswith(b"["):
        if value is None or (len(sample) == 1 and is_whole):
            return f"the file is a JSON array; {_JSONL_HINT}: jq -c '.[]' FILE > NEW.jsonl"
        return ""
    if not start.startswith(b"{"):
        return f"the file looks like a CSV table; {_JSONL_HINT}" if _is_table(sample) else ""
    if sample and all(line.startswith(b"{'") for line in sample):
        return "the lines are Python dictionaries, not JSON (single quotes); write them with json.dumps()"
    if sample and all(line.endswith(b"},") and _decode_json(line[:-1]) is not None for line in sample):
        return "every line ends with a comma; remove them: sed 's/},[[:space:]]*$/}/' FILE > NEW.jsonl"
    if _spans_lines(start, is_whole=is_whole):
        return f"the JSON is spread over several lines; {_JSONL_HINT}: jq -c . FILE > NEW.jsonl"
    return ""


def _spans_lines(start: bytes, *, is_whole: bool) -> bool:
    """Return True if the first object spans several lines, as in pretty-printed JSON."""
    line, newline, rest = start.partition(b"\n")
    if not newline or _decode_json(line) is not None:
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(start.decode(errors="replace"))
    except json.JSONDecodeError:
        # An object longer than the head cannot be decoded; a line with only its opening brace is enough evidence.
        return not is_whole and line.strip(WHITESPACE) == b"{" and rest.lstrip(WHITESPACE).startswith(b'"')
    except (ValueError, RecursionError):
        return False
    return b"\n" in start.decode(errors="replace")[:end].encode()


def _is_table(sample: Sequence[bytes]) -> bool:
    """Return True if the first two lines have the same number of fields, more than one, and no line is JSON."""
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


def _describe_service(line: Any) -> tuple[str, str] | None:
    """Return the missing parameter and the description of a line in another service's format, or None."""
    if not isinstance(line, dict) or "method" in line or "url" in line:
        return None
    names = line.keys()
    # In the order of the table, whose first entries are the most specific.
    for required, param, description in _SERVICE_FORMATS:
        if required <= names:
            return param, f"the file {description}"
    return None


_BODIES_HINT: Final = "its bodies must be rewritten as well, for the endpoint that you call"
_SERVICE_FORMATS: Final = (
    (
        {"custom_id", "params"},
        "body",
        f"is in the format of Anthropic's Message Batches (params); {_SHAPE_HINT}: "
        """jq -c '{custom_id, method: "POST", url: "/v1/messages", body: .params}' FILE > NEW.jsonl""",
    ),
    (
        {"recordId", "modelInput"},
        "body",
        f"is in the format of Amazon Bedrock (recordId, modelInput); {_SHAPE_HINT}; "
        f"body names its model; {_BODIES_HINT}",
    ),
    *(
        (
            names,
            "body",
            f"is in the format of Gemini's batches ({', '.join(sorted(names))}); {_SHAPE_HINT}; "
            f"{_BODIES_HINT} (contents become messages)",
        )
        for names in ({"key", "request"}, {"request"})
    ),
    ({"contents"}, "body", f"has bodies of Gemini's API (contents); {_SHAPE_HINT}; {_BODIES_HINT}"),
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
        f"contains the results of a batch, not requests; {_SHAPE_HINT}; use the batch's input file instead",
    ),
    *(
        ({name}, "body", f"contains bare request bodies ({name}); {_SHAPE_HINT}; put each into a line's body")
        for name in ("messages", "prompt")
    ),
)


def explain_json_error(line: bytes, offset: int) -> str:
    """Return the reason why the line is not JSON at byte `offset`, for its error message."""
    rest, before = line[offset : offset + 20], line[:offset].rstrip(WHITESPACE)
    if not rest.strip(WHITESPACE):
        return f"it ends unexpectedly at byte {offset} of the line"
    word = _WORD_PATTERN.match(rest)
    if word and word[0] in _PYTHON_WORDS:
        reason = f"{word[0].decode()} is Python, JSON has {_PYTHON_WORDS[word[0]]},"
    elif word and word[0] in {b"NaN", b"Infinity", b"undefined"}:
        reason = f"{word[0].decode()} is not a JSON value,"
    elif rest.startswith(b"'"):
        reason = "strings need double quotes, there is a single one"
    elif rest.startswith((b"\xe2\x80\x9c", b"\xe2\x80\x9d")):
        reason = "strings need straight quotes, there is a curly one"
    elif rest[:1] in {b"}", b"]"} and before.endswith(b","):
        reason = f"there is a comma before the closing {rest[:1].decode()}"
    elif before.endswith(b"}") and is_json(before):
        reason = "a comma follows the object" if rest.startswith(b",") else "there is more text after the object"
    else:
        reason = "invalid syntax"
    return f"{reason} at byte {offset} of the line"


def is_windows_text(line: bytes) -> bool:
    """Return True if no part of the line beyond ASCII is UTF-8, as in Windows-1252 or Latin-1."""
    return line.decode(errors="ignore").isascii()
