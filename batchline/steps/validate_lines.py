"""Validates an input file line by line and splits it into chunks, in one streaming pass.

A valid line of the usual form takes one decode; every other line goes to `line_errors`, which finds its errors. A
second pass is made only if two lines may have the same `custom_id`.
"""

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from batchline.models.batches import BatchError
from batchline.models.json_scan import MAX_DEPTH, NotJSONError, has_duplicate_member, is_too_deep
from batchline.models.plan import MAX_RANGE_LINES, Chunk, InputRange, Plan, max_chunk_requests
from batchline.models.settings import Settings
from batchline.steps.format_detection import HEAD_BYTES, WHITESPACE, detect_foreign_format
from batchline.steps.line_blocks import LineBlock, split_line_blocks
from batchline.steps.line_errors import (
    MAX_CUSTOM_ID_CHARS,
    LineError,
    LineRules,
    check_line,
    line_too_long,
    parse_url,
)

BYTES_PER_TOKEN: Final = 4
MAX_SURELY_FLAT_BYTES: Final = 2 * MAX_DEPTH
"""A shorter line cannot be nested too deeply: each level takes two brackets."""

OpenBlocks = Callable[[], Iterator[bytes]]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of validating a file: a plan, or the errors that prevent one.

    `errors` are in line order; the last is `too_many_errors` if there were more than the limit. `estimated_tokens`
    is the input's size divided by four: a rough estimate, of the right order for English.
    """

    plan: Plan | None
    errors: list[BatchError]
    error_count: int
    estimated_tokens: int


class _PlainBody(msgspec.Struct):
    model: str
    stream: bool | None = None


class _PlainRequest(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _PlainBody


_decode_request = msgspec.json.Decoder(_PlainRequest).decode


def validate_lines(
    open_blocks: OpenBlocks,
    *,
    batch_id: str,
    input_key: str,
    endpoint: str | None,
    settings: Settings,
    max_errors: int | None,
) -> Validation:
    """Validate every line; each call of `open_blocks` yields the decompressed file from its start.

    If `endpoint` is None, the first allowed one in the file is used. At most `max_errors` errors are kept, or all
    if it is None.
    """
    all_blocks = open_blocks()
    head, is_whole = _read_head(all_blocks)
    if format_error := detect_foreign_format(head, is_whole=is_whole):
        return Validation(plan=None, errors=[format_error], error_count=1, estimated_tokens=0)
    endpoint = endpoint or detect_endpoint(open_blocks(), settings=settings)
    first_scan = _Scan(endpoint, settings, max_errors)
    first_scan.scan(itertools.chain([head], all_blocks))
    duplicates, unlisted = duplicate_hashes(first_scan.hashes, limit=max_errors)
    if duplicates:
        # Only now are the custom_ids of the suspects compared: equal hashes need not mean equal texts.
        second_scan = _Scan(endpoint, settings, max_errors, suspects=duplicates)
        second_scan.scan(open_blocks())
        first_scan.errors = second_scan.errors
        first_scan.errors.count += unlisted
    if first_scan.errors.count:
        plan = None
    else:
        plan = Plan(
            batch_id=batch_id,
            input_key=input_key,
            size_bytes=first_scan.size,
            sha256=first_scan.digest(),
            endpoint=endpoint,
            total=first_scan.requests,
            chunks=first_scan.chunks(settings),
            models=sorted(first_scan.models),
        )
    return Validation(
        plan=plan,
        errors=first_scan.errors.as_list(),
        error_count=first_scan.errors.count,
        estimated_tokens=first_scan.size // BYTES_PER_TOKEN,
    )


def detect_endpoint(blocks: Iterator[bytes], *, settings: Settings) -> str:
    """Return the first url in the file that is an allowed endpoint, or if none is, the first allowed endpoint."""
    head, is_whole = _read_head(blocks)
    if detect_foreign_format(head, is_whole=is_whole):  # no line of it has a url
        return settings.endpoints[0]
    line_blocks = split_line_blocks(itertools.chain([head], blocks), max_line_bytes=settings.max_line_bytes)
    urls = (parse_url(line) for line_block in line_blocks for line in line_block.lines)
    return next((url for url in urls if url in settings.endpoints), settings.endpoints[0])


def _read_head(blocks: Iterator[bytes]) -> tuple[bytes, bool]:
    """Read blocks until there are `HEAD_BYTES`; return them joined, and True if that was the whole file."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= HEAD_BYTES:
            return head, False
    return head, True


def duplicate_hashes(hashes: "array[int]", *, limit: int | None) -> tuple[frozenset[int], int]:
    """Return values that occur more than once, and the number of repetitions of those not returned.

    The values cover the first `limit` repetitions only, which bounds memory for a file of nothing but duplicates.
    """
    if len(hashes) < 50_000:  # counted faster than numpy is imported
        counts = Counter(hashes)
        return frozenset(value for value, times in counts.items() if times > 1), 0
    import numpy as np  # noqa: PLC0415 - only large files are worth its import

    values = np.frombuffer(hashes, dtype=np.int64)
    # A stable sort keeps file order among equal values, so all but the first count as repetitions.
    order = np.argsort(values, kind="stable")
    is_repeated = np.zeros(len(values), dtype=np.bool_)
    is_repeated[order[1:]] = values[order[1:]] == values[order[:-1]]
    repetitions = values[is_repeated]
    first_values = np.unique(repetitions[:limit])
    return frozenset(first_values.tolist()), int(len(repetitions) - np.isin(repetitions, first_values).sum())


class _ErrorList:
    """The first errors up to a limit, and the number of all."""

    def __init__(self, limit: int | None) -> None:
        self.count = 0
        self._limit = limit
        self._errors: list[BatchError] = []

    def add(self, line: int | None, errors: Sequence[LineError]) -> None:
        """Add the errors of a line, or of the file if `line` is None."""
        self.count += len(errors)
        free = len(errors) if self._limit is None else max(0, self._limit - len(self._errors))
        for code, message, param in errors[:free]:
            self._errors.append(BatchError(code=code, line=line, message=message, param=param))

    def as_list(self) -> list[BatchError]:
        """Return the errors to report, the last of which may be `too_many_errors`."""
        if self._limit is None or self.count <= self._limit:
            return self._errors
        more = self.count - self._limit + 1
        notice = BatchError(
            code="too_many_errors",
            message=f"{more:,} more errors are not listed; `batchline validate` prints all of them",
        )
        return [*self._errors[: self._limit - 1], notice]


class _Scan:
    """One pass over the file."""

    def __init__(
        self, endpoint: str, settings: Settings, max_errors: int | None, *, suspects: frozenset[int] = frozenset()
    ) -> None:
        self.errors = _ErrorList(max_errors)
        self.hashes = array("q")
        self.requests = 0
        self.size = 0
        self._settings = settings
        self._rules = LineRules(endpoint, settings)
        self.models = self._rules.models
        self._suspect_hashes = suspects
        self._first_lines: dict[str, int] = {}
        self._blocks: list[_ScannedBlock] = []

    def scan(self, blocks: Iterator[bytes]) -> None:
        """Validate the whole file, and record the position of each block."""
        settings = self._settings
        max_bytes, max_requests = settings.max_file_bytes, settings.max_requests
        # No block may be larger than a chunk, since a chunk consists of whole blocks.
        max_lines = min(MAX_RANGE_LINES, settings.chunk_requests or MAX_RANGE_LINES)
        for block in split_line_blocks(blocks, max_line_bytes=settings.max_line_bytes, max_lines=max_lines):
            size_before, requests_before = self.size, self.requests
            self._check_block(block)
            self.size = block.end
            last_line = block.first_line + max(1, len(block.lines)) - 1
            requests = self.requests - requests_before
            input_range = InputRange(block.start, block.end, block.first_line, block.sha256)
            self._blocks.append(_ScannedBlock(input_range, last_line, requests))
            if size_before <= max_bytes < self.size:
                self._add_error("file_too_large", None, f"the file is longer than {max_bytes:,} bytes; split it")
            if requests_before <= max_requests < self.requests:
                self._add_error(
                    "too_many_requests", None, f"the file has more than {max_requests:,} requests; split it"
                )
        if not self.requests and not self.errors.count:
            self._add_error("empty_file", None, "the file has no requests; write one JSON object per line")

    def _check_block(self, line_block: LineBlock) -> None:
        """Validate a block's lines; only valid lines of the usual form take the fast path."""
        if line_block.too_long_bytes:
            self.requests += 1
            self.errors.add(line_block.first_line, [line_too_long(line_block.too_long_bytes, self._rules)])
            return
        endpoint, models, add_hash = self._rules.endpoint, self.models, self.hashes.append
        max_line_bytes, is_utf8, suspects = self._rules.max_line_bytes, line_block.is_utf8, self._suspect_hashes
        starts: list[int] = []
        for number, line in enumerate(line_block.lines, start=line_block.first_line):
            try:
                request = _decode_request(line)
                custom_id: str | None = request.custom_id
                body = request.body
                is_plain = (
                    request.url == endpoint
                    and request.method == "POST"
                    and not body.stream
                    and body.model in models
                    and 0 < len(request.custom_id) <= MAX_CUSTOM_ID_CHARS
                    and len(line) <= max_line_bytes
                    and is_utf8
                    # msgspec silently takes the last of two members; a body may have a member of that name, too.
                    and (line.count(b'"custom_id"') == 1 or not has_duplicate_member(line, "custom_id"))
                    and (len(line) <= MAX_SURELY_FLAT_BYTES or not is_too_deep(line))
                )
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, NotJSONError):
                is_plain = False
            if not is_plain:
                if not line.strip(WHITESPACE):
                    continue
                # Byte offsets are only computed for a block that has an unusual line.
                starts = starts or [
                    *itertools.accumulate((len(text) + 1 for text in line_block.lines), initial=line_block.start)
                ]
                custom_id = self._check_unusual(number, line, starts[number - line_block.first_line])
            self.requests += 1
            if custom_id is not None:
                # Eight bytes per request instead of the text; candidates are confirmed in a second scan.
                add_hash(hash(custom_id))
                if suspects and hash(custom_id) in suspects:
                    self._check_duplicate(number, custom_id)

    def _check_unusual(self, number: int, line: bytes, offset: int) -> str | None:
        """Check a line for every error; return its custom_id, or None if it has no valid one."""
        check = check_line(line, offset=offset, rules=self._rules)
        self.errors.add(number, check.errors)
        if check.model is not None and not check.errors:
            self.models.add(check.model)
        return check.custom_id

    def _check_duplicate(self, number: int, custom_id: str) -> None:
        first_line = self._first_lines.setdefault(custom_id, number)
        if first_line != number:
            self._add_error(
                "duplicate_custom_id",
                number,
                f"custom_id {custom_id[:60]!r} is already used in line {first_line}; make each one unique",
                param="custom_id",
            )

    def _add_error(self, code: str, line: int | None, message: str, param: str | None = None) -> None:
        self.errors.add(line, [(code, message, param)])

    def digest(self) -> str:
        """Return the digest of the blocks' digests."""
        return hashlib.sha256("".join(block.range.sha256 for block in self._blocks).encode()).hexdigest()

    def chunks(self, settings: Settings) -> list[Chunk]:
        """Return the chunks of a file without errors: adjacent blocks, grouped up to the limits."""
        max_requests = settings.chunk_requests or max_chunk_requests(
            self.requests, senders=settings.sender_processes
        )
        groups: list[list[_ScannedBlock]] = []
        requests = 0
        for block in self._blocks:
            is_full = requests + block.requests > max_requests or (
                requests and block.range.end - groups[-1][0].range.start > settings.chunk_bytes
            )
            # A block without requests joins its neighbour.
            if groups and not (is_full and block.requests and requests):
                groups[-1].append(block)
                requests += block.requests
            else:
                groups.append([block])
                requests = block.requests
        return [
            Chunk(
                index=index,
                requests=sum(block.requests for block in group),
                last_line=group[-1].last_line,
                ranges=[block.range for block in group],
            )
            for index, group in enumerate(groups)
        ]


class _ScannedBlock(NamedTuple):
    """A block of the file, and the number of its requests."""

    range: InputRange
    last_line: int
    requests: int
