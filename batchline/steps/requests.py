"""A chunk's requests, read from storage a stretch at a time and checked against the plan."""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from batchline.models.errors import InputChanged, NotFound, StorageFault
from batchline.models.lines import split_line
from batchline.models.plan import Chunk, Stretch
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
    _check_input(store, key, file_bytes)
    for run in _runs(chunk.stretches):
        for stretch, text in _checked(store, key, run, file_bytes):
            yield stretch.first_line, _lines(text)


def _runs(stretches: Sequence[Stretch]) -> Iterator[list[Stretch]]:
    """Stretches that follow each other without a gap, together."""
    run: list[Stretch] = []
    for stretch in stretches:
        if run and run[-1].end != stretch.start:
            yield run
            run = []
        run.append(stretch)
    if run:
        yield run


def _lines(text: bytes) -> list[bytes]:
    """The text's lines; a single one keeps its newline, as a copy without it may be dear."""
    return [text, b""] if text.find(b"\n") == len(text) - 1 else text.split(b"\n")


def _checked(
    store: ObjectStore, key: str, run: Sequence[Stretch], file_bytes: int
) -> Iterator[tuple[Stretch, bytes]]:
    blocks = _stored(store, key, run, file_bytes)
    block, used = b"", 0
    for stretch in run:
        size = stretch.end - stretch.start
        text = block[used : used + size]
        used += size
        while len(text) < size:
            block = next(blocks, b"")
            if not block:
                raise _changed(key, stretch)
            used = size - len(text)
            text += block[:used]
        if hashlib.sha256(text).hexdigest() != stretch.sha256:
            raise _changed(key, stretch)
        yield stretch, text


def _stored(store: ObjectStore, key: str, run: Sequence[Stretch], file_bytes: int) -> Iterator[bytes]:
    """The run's bytes as they are now."""
    try:
        if _has_long_line(run):
            yield from (_heavy_reader.submit(store.read, key, each.start, each.end).result() for each in run)
        else:
            yield from store.stream(key, run[0].start, run[-1].end)
    except NotFound as error:
        raise _vanished(key) from error
    except StorageFault:
        _check_input(store, key, file_bytes)
        raise


def is_heavy(chunk: Chunk) -> bool:
    """Whether the chunk has a line so long that few such chunks may be held in memory at once."""
    return _has_long_line(chunk.stretches)


def _has_long_line(stretches: Iterable[Stretch]) -> bool:
    return any(each.end - each.start > HEAVY_BYTES for each in stretches)


def _check_input(store: ObjectStore, key: str, expected: int) -> None:
    try:
        size = store.info(key).size_bytes
    except NotFound as error:
        raise _vanished(key) from error
    if size != expected:
        raise InputChanged(
            f"input {key} has changed since it was validated: it had {expected:,} bytes and has {size:,}; "
            "start a new batch from the file as it is now"
        )


def _vanished(key: str) -> InputChanged:
    return InputChanged(f"input {key} has vanished since it was validated; upload it again")


def _changed(key: str, stretch: Stretch) -> InputChanged:
    return InputChanged(
        f"input {key} has changed since it was validated: bytes {stretch.start} to {stretch.end} are not the ones "
        "that were checked; start a new batch from the file as it is now"
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

    found = members(bytes(body), "model").get("model")
    return None if found is None else msgspec.json.decode(found, type=str | None)
