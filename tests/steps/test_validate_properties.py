"""Properties of the validation of any file."""

import json
from collections.abc import Iterator

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from batchline.models.batches import BatchError
from batchline.models.plan import Plan
from batchline.models.settings import Settings
from batchline.steps.format_detection import detect_foreign_format
from batchline.steps.line_blocks import UTF8_BOM
from batchline.steps.validate_lines import Validation, validate_lines

CHAT = "/v1/chat/completions"
GOOD = b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","x":%b}}'


def check(text: bytes, *, blocks_of: int = 2**20, **chosen: object) -> Validation:
    def blocks() -> Iterator[bytes]:
        return (text[at : at + blocks_of] for at in range(0, len(text), blocks_of))

    return validate_lines(
        blocks,
        batch_id="batch-0",
        input_key="input",
        endpoint=CHAT,
        settings=Settings(**chosen),
        max_errors=None,
    )


def non_blank(text: bytes) -> dict[int, bytes]:
    """The lines that are not blank, by number."""
    lines = enumerate(text.removeprefix(UTF8_BOM).split(b"\n"), start=1)
    return {number: line for number, line in lines if line.strip(b" \t\r")}


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def is_request(line: bytes) -> bool:
    """Return True if the line is a chat request by Python's own parser."""
    try:
        found = json.loads(line.decode(), parse_constant=refuse)
        custom_id, body = found["custom_id"], found["body"]
        stream = body.get("stream")
        return (
            (found["method"], found["url"]) == ("POST", CHAT)
            and 0 < len(custom_id) <= 512
            and isinstance(custom_id.encode() + body["model"].encode(), bytes)
            and body["model"] != ""
            and (stream is None or stream is False)
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


JUNK = st.binary(max_size=20) | st.sampled_from([b"", b" \r", b"\0", b"{}", b"[]", b'"x"', UTF8_BOM, b"{" * 99])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode())
REQUESTS = st.builds(lambda number, value: GOOD % (number, value), st.integers(0, 10**9), VALUES)
MUTATED = st.builds(
    lambda line, at, gone, new: line[: at % len(line)] + new + line[at % len(line) + gone :],
    REQUESTS,
    st.integers(0, 500),
    st.integers(0, 3),
    st.sampled_from(
        [b"", b'"', b"\\", b"{", b"}", b",", b":", b"0", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b" "]
    ),
)
FILES = st.builds(
    lambda lines, mark, newline: (UTF8_BOM if mark else b"") + newline.join(lines),
    st.lists(JUNK | REQUESTS | MUTATED, max_size=8),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n"]),
)


def lines_of(errors: list[BatchError]) -> set[int | None]:
    return {error.line for error in errors}


@given(FILES)
@example(GOOD.replace(b'"m"', b'""') % (1, b"0"))
@settings(max_examples=400, deadline=None)
def test_any_line_is_blank_or_valid_or_has_an_error_with_its_number(text):
    assume(detect_foreign_format(text, is_whole=True) is None)  # such a file has one error
    found = check(text)

    expected: set[int | None] = {number for number, line in non_blank(text).items() if not is_request(line)}
    twins = {error.line for error in found.errors if error.code == "duplicate_custom_id"}
    empty = {None} if not non_blank(text) else set()
    assert lines_of(found.errors) - twins == (expected - twins) | empty
    assert (found.plan is None) == bool(found.errors)


@given(FILES, st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_errors_do_not_depend_on_block_boundaries(text, blocks_of):
    assert check(text, blocks_of=blocks_of, max_line_bytes=150).errors == check(text, max_line_bytes=150).errors


GOOD_FILES = st.builds(
    lambda values, blanks, mark, newline, last: (
        (UTF8_BOM if mark else b"")
        + newline.join(
            b"\n" * blanks[number % len(blanks)] + GOOD % (number, value) for number, value in enumerate(values)
        )
        + last
    ),
    st.lists(VALUES, min_size=1, max_size=30),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"", b"\n", b"\r\n\n \n"]),
)


def plan_of(text: bytes, **options: object) -> Plan:
    found = check(text, **options)
    assert found.errors == []
    assert found.plan is not None
    return found.plan


@given(GOOD_FILES, st.integers(1, 9), st.integers(1, 2_000), st.integers(20, 4_000))
@example(b"\n\n" + GOOD % (1, b"1") + b"\n\n" + GOOD % (2, b"2") + b"\n\n\n", 1, 1, 20)
@settings(max_examples=200, deadline=None)
def test_chunks_tile_the_file_and_contain_each_request_once(text, chunk_requests, chunk_bytes, blocks_of):
    plan = plan_of(text, chunk_requests=chunk_requests, chunk_bytes=chunk_bytes, blocks_of=blocks_of)

    at, line = (len(UTF8_BOM) if text.startswith(UTF8_BOM) else 0), 1
    for index, chunk in enumerate(plan.chunks):
        start = at
        assert (chunk.index, chunk.first_line) == (index, line)
        for stretch in chunk.ranges:
            assert (stretch.start, stretch.first_line) == (at, line)
            at, line = stretch.end, line + text[at : stretch.end].count(b"\n")
        assert 0 < chunk.requests == len(non_blank(text[start:at])) <= chunk_requests
    assert at == plan.size_bytes == len(text)
    assert plan.total == len(non_blank(text))


@given(GOOD_FILES, st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_plan_digest_changes_with_any_byte_of_the_requests(text, place, change):
    at = place % len(text)
    other = check(text[:at] + bytes([text[at] ^ change]) + text[at + 1 :]).plan

    assert other is None or at < len(UTF8_BOM) or other.sha256 != plan_of(text).sha256
