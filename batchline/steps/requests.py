"""A chunk's requests, read from storage a stretch at a time and checked against the plan."""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import msgspec

from batchline.models.errors import InputChanged, NotFound, StorageFault
from batchline.models.lines import split_line
from batchline.models.plan import Chunk
from batchline.storage.objects import ObjectStore
from batchline.upstream.answers import Call


class _Head(msgspec.Struct):
    model: str | None = None


HEAVY_BYTES = 2**20
_heavy_reader = ThreadPoolExecutor(1, thread_name_prefix="long lines")
"""One thread, because the C library gives each its own heap, which keeps the room that a long line once took."""

_decode_head = msgspec.json.Decoder(_Head).decode


def stretches(store: ObjectStore, key: str, chunk: Chunk, *, file_bytes: int) -> Iterator[tuple[int, list[bytes]]]:
    """The chunk's lines, a list for each stretch with the number of its first; the last of a list may be empty.

    Nothing is given out of a file that has not the size it had, `file_bytes`, and nothing of a stretch before its
    digest is found right; raises `InputChanged` otherwise.
    """
    number = chunk.first_line
    for text in _checked_stretches(store, key, chunk, file_bytes):
        lines = _lines(text)
        yield number, lines
        number += len(lines) - 1


def _lines(text: bytes) -> list[bytes]:
    """The text's lines; a single one keeps its newline, as a copy without it may be dear."""
    return [text, b""] if text.find(b"\n") == len(text) - 1 else text.split(b"\n")


def _checked_stretches(store: ObjectStore, key: str, chunk: Chunk, file_bytes: int) -> Iterator[bytes]:
    blocks = _stored(store, key, chunk, file_bytes)
    block, used, at = b"", 0, chunk.start
    for stretch in chunk.stretches:
        size = stretch.end - at
        text = block[used : used + size]
        used += size
        while len(text) < size:
            block = next(blocks, b"")
            if not block:
                raise _changed(key, at, stretch.end)
            used = size - len(text)
            text += block[:used]
        if hashlib.sha256(text).hexdigest() != stretch.sha256:
            raise _changed(key, at, stretch.end)
        at = stretch.end
        yield text


def _stored(store: ObjectStore, key: str, chunk: Chunk, file_bytes: int) -> Iterator[bytes]:
    """The chunk's bytes as they are now."""
    try:
        _check_size(store, key, file_bytes)
        yield from _one_by_one(store, key, chunk) if is_heavy(chunk) else store.stream(key, chunk.start, chunk.end)
    except NotFound as error:
        raise InputChanged(f"input {key} has vanished since it was validated; upload it again") from error
    except StorageFault:
        if store.exists(key):
            _check_size(store, key, file_bytes)
        raise


def _one_by_one(store: ObjectStore, key: str, chunk: Chunk) -> Iterator[bytes]:
    """The chunk's stretches, each read in one piece by the one thread that reads such."""
    at = chunk.start
    for stretch in chunk.stretches:
        yield _heavy_reader.submit(store.read, key, at, stretch.end).result()
        at = stretch.end


def is_heavy(chunk: Chunk) -> bool:
    """Whether the chunk has a line so long that few such chunks may be held in memory at once."""
    starts = [chunk.start, *(stretch.end for stretch in chunk.stretches)]
    return any(end - start > HEAVY_BYTES for start, end in pairwise(starts))


def _check_size(store: ObjectStore, key: str, expected: int) -> None:
    size = store.info(key).size_bytes
    if size != expected:
        raise InputChanged(
            f"input {key} has changed since it was validated: it had {expected:,} bytes and has {size:,}; "
            "start a new batch from the file as it is now"
        )


def _changed(key: str, start: int, end: int) -> InputChanged:
    return InputChanged(
        f"input {key} has changed since it was validated: bytes {start} to {end} are not the ones that were "
        "checked; start a new batch from the file as it is now"
    )


def calls(
    lines: Iterable[tuple[int, bytes]],
    *,
    endpoint: str,
    only_model: str | None,
    upstream_of: Callable[[str | None], str],
    done: Container[int] = (),
) -> list[Call]:
    """The calls that those numbered lines ask for, but for blank ones and those that are done.

    `only_model` saves the look where the batch has just one.
    """
    made = []
    for number, line in lines:
        if not line or line.isspace() or number in done:
            continue
        request = split_line(line)
        model = only_model or model_of(request.body)
        made.append(
            Call(
                line=number,
                custom_id=request.custom_id,
                model=model,
                path=endpoint,
                body=request.body,
                upstream=upstream_of(model),
            )
        )
    return made


def model_of(body: msgspec.Raw) -> str | None:
    """The body's `model`, if it names one."""
    try:
        return _decode_head(body).model
    except (msgspec.DecodeError, RecursionError):
        return _model_of_odd(body)


def _model_of_odd(body: msgspec.Raw) -> str | None:
    from batchline.models.json_scan import members  # noqa: PLC0415 - for the rare body that msgspec refuses

    found = members(bytes(body)).get("model")
    return None if found is None else msgspec.json.decode(found, type=str | None)
