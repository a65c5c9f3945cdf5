"""A chunk's requests, read from storage in small pieces and checked against the plan first."""

import hashlib
from collections.abc import Callable, Iterator

import msgspec

from batchline.models.errors import InputChanged, NotFound
from batchline.models.lines import split_line
from batchline.models.plan import Chunk
from batchline.storage.objects import ObjectStore
from batchline.upstream.answers import Call

HELD_BYTES = 4 * 2**20
"""A chunk up to this size is read once and held; a larger one is read again as it is sent."""

BLOCK_BYTES = 2**18
UTF8_BOM = b"\xef\xbb\xbf"


class _Head(msgspec.Struct):
    model: str | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


def chunk_bytes(store: ObjectStore, key: str, chunk: Chunk) -> Callable[[], Iterator[bytes]]:
    """The chunk's bytes in blocks, once its digest is found right; raises `InputChanged` otherwise."""
    digest = hashlib.sha256()
    held: list[bytes] | None = [] if chunk.end - chunk.start <= HELD_BYTES else None
    try:
        for block in store.stream(key, chunk.start, chunk.end):
            digest.update(block)
            if held is not None:
                held.append(block)
    except NotFound as error:
        raise InputChanged(f"input {key} has vanished since it was validated; upload it again") from error
    if digest.hexdigest() != chunk.sha256:
        raise InputChanged(
            f"input {key} has changed since it was validated: bytes {chunk.start} to {chunk.end} are not the "
            "ones that were checked; start a new batch from the file as it is now"
        )
    if held is not None:
        blocks = held
        return lambda: iter(blocks)
    return lambda: store.stream(key, chunk.start, chunk.end, block_bytes=BLOCK_BYTES)


def numbered_lines(blocks: Iterator[bytes], first_line: int) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that are not blank with their numbers, a list for each stretch of input that ended some."""
    number = first_line
    rest: list[bytes] = []
    for block in blocks:
        for piece in _pieces(block):
            lines = piece.split(b"\n")
            if len(lines) == 1:
                rest.append(piece)
                continue
            rest.append(lines[0])
            lines[0] = b"".join(rest)
            rest = [lines.pop()]
            yield [(number + at, line) for at, line in enumerate(lines) if line and not line.isspace()]
            number += len(lines)
    last = b"".join(rest)
    if last and not last.isspace():
        yield [(number, last)]


def _pieces(block: bytes) -> Iterator[bytes]:
    for start in range(0, len(block), BLOCK_BYTES):
        yield block[start : start + BLOCK_BYTES]


def calls(
    lines: list[tuple[int, bytes]],
    *,
    endpoint: str,
    only_model: str | None,
    upstream_of: Callable[[str | None], str],
) -> list[Call]:
    """The calls that those input lines ask for; `only_model` saves the look where the batch has just one."""
    made = []
    for number, line in lines:
        request = split_line(line.removeprefix(UTF8_BOM) if number == 1 else line)
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
