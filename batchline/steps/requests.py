"""Reads a chunk's requests from storage, a range of lines at a time, and verifies them against the plan."""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from batchline.models.errors import InputChanged, NotFound, StorageFault
from batchline.models.lines import parse_request_line
from batchline.models.plan import Chunk, InputRange
from batchline.storage.objects.store import ObjectStore
from batchline.upstream.call_results import Call


class _ModelOnly(msgspec.Struct):
    model: str | None = None


LARGE_LINE_BYTES = 2**20
_large_line_reader = ThreadPoolExecutor(1, thread_name_prefix="long lines")
"""One thread, as the C library's heap of each thread keeps the memory that a long line once took."""

_decode_head = msgspec.json.Decoder(_ModelOnly).decode


def read_line_blocks(
    store: ObjectStore, key: str, chunk: Chunk, *, file_bytes: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the chunk's lines: a list per range with the number of its first line; the last line may be empty.

    Raises `InputChanged` unless the file still has `file_bytes` bytes and each range has the planned digest.
    """
    _check_input_size(store, key, file_bytes)
    for ranges in _adjacent_ranges(chunk.ranges):
        blocks = _read_stored(store, key, ranges, file_bytes)
        block, used = b"", 0
        for input_range in ranges:
            size = input_range.end - input_range.start
            text = block[used : used + size]
            used += size
            while len(text) < size and (block := next(blocks, b"")):
                used = size - len(text)
                text += block[:used]
            if hashlib.sha256(text).hexdigest() != input_range.sha256:
                raise InputChanged(
                    f"input {key} has changed since it was validated: bytes {input_range.start} to "
                    f"{input_range.end} are not the ones that were checked; start a new batch from the file as it "
                    "is now"
                )
            # A single line, which may be very long, keeps its newline to save a copy.
            is_single_line = text.find(b"\n") == len(text) - 1
            yield input_range.first_line, [text, b""] if is_single_line else text.split(b"\n")


def _adjacent_ranges(ranges: Sequence[InputRange]) -> Iterator[list[InputRange]]:
    """Group ranges that follow each other without a gap, to read each group in one request."""
    adjacent: list[InputRange] = []
    for input_range in ranges:
        if adjacent and adjacent[-1].end != input_range.start:
            yield adjacent
            adjacent = []
        adjacent.append(input_range)
    if adjacent:
        yield adjacent


def _read_stored(store: ObjectStore, key: str, ranges: Sequence[InputRange], file_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of adjacent ranges as they are stored now."""
    try:
        if has_large_line(ranges):
            yield from (
                _large_line_reader.submit(store.read, key, input_range.start, input_range.end).result()
                for input_range in ranges
            )
        else:
            yield from store.stream(key, ranges[0].start, ranges[-1].end)
    except NotFound as error:
        raise _input_missing(key) from error
    except StorageFault:
        # Reading beyond the end of a file that has shrunk fails like a storage fault.
        _check_input_size(store, key, file_bytes)
        raise


def has_large_line(ranges: Iterable[InputRange]) -> bool:
    """Return True if the ranges contain a very long line, so that few such chunks may be in memory at once."""
    # Ranges are cut from slices of 64 KiB, so that only a very long line makes one this large.
    return any(input_range.end - input_range.start > LARGE_LINE_BYTES for input_range in ranges)


def _check_input_size(store: ObjectStore, key: str, expected_bytes: int) -> None:
    try:
        size = store.info(key).size_bytes
    except NotFound as error:
        raise _input_missing(key) from error
    if size != expected_bytes:
        raise InputChanged(
            f"input {key} has changed since it was validated: it had {expected_bytes:,} bytes and has {size:,}; "
            "start a new batch from the file as it is now"
        )


def _input_missing(key: str) -> InputChanged:
    return InputChanged(f"input {key} has vanished since it was validated; upload it again")


def build_calls(
    lines: Iterable[tuple[int, bytes]],
    *,
    endpoint: str,
    only_model: str | None,
    find_upstream: Callable[[str | None], str],
    only_lines: Container[int] | None = None,
    skipped_lines: Container[int] = (),
) -> list[Call]:
    """Build the calls of numbered lines, without blank and skipped ones; `only_model` saves decoding bodies."""
    built = []
    for number, line in lines:
        if not line or line.isspace() or number in skipped_lines:
            continue
        if only_lines is not None and number not in only_lines:
            continue
        request = parse_request_line(line)
        model = only_model or parse_model(request.body)
        built.append(
            Call(
                line=number,
                custom_id=request.custom_id,
                model=model,
                path=endpoint,
                body=request.body,
                upstream=find_upstream(model),
            )
        )
    return built


def parse_model(body: msgspec.Raw) -> str | None:
    """Return the body's `model`, or None if it has none."""
    try:
        return _decode_head(body).model
    except (msgspec.DecodeError, RecursionError):
        from batchline.models.json_scan import read_members  # noqa: PLC0415 - for the rare body that msgspec refuses

        model_json = read_members(bytes(body), "model").get("model")
        return None if model_json is None else msgspec.json.decode(model_json, type=str | None)
