"""Checks an input file line by line and cuts it into chunks, in one streaming pass.

Lines that are as they should be take one decode each; whatever is unusual goes to `batchline.steps.faults`, which
works out what is wrong. A second pass is made only where two lines may have the same `custom_id`.
"""

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from batchline.models.batches import BatchError
from batchline.models.json_scan import MAX_DEPTH, NotJSONError, has_twice, is_too_deep
from batchline.models.plan import STRETCH_LINES, Chunk, Plan, chunk_requests
from batchline.models.plan import Stretch as Pinned
from batchline.models.settings import Settings
from batchline.steps.faults import MAX_CUSTOM_ID, Fault, Rules, endpoint_in, look_at, overlong
from batchline.steps.formats import BLANKS, HEAD_BYTES, foreign_format
from batchline.steps.stretches import Stretch, stretches_of

BYTES_A_TOKEN: Final = 4
SURELY_FLAT_BYTES: Final = 2 * MAX_DEPTH
"""A shorter line has no room to be nested too deeply."""

Blocks = Callable[[], Iterator[bytes]]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """What a file's check found: a plan, or the errors that forbid one.

    `errors` are in line order; the last is `too_many_errors` where there were more than were asked for.
    `estimated_tokens` is the input's size divided by four: rough, but of the right order for English.
    """

    plan: Plan | None
    errors: list[BatchError]
    error_count: int
    estimated_tokens: int


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _Body


_decode = msgspec.json.Decoder(_Line).decode


def validate_input(
    blocks: Blocks,
    *,
    batch_id: str,
    input_key: str,
    endpoint: str | None,
    settings: Settings,
    max_errors: int | None,
) -> Validation:
    """Check every line; `blocks` gives the decompressed file from its start each time that it is called.

    An `endpoint` of None stands for the first one in the file that the settings allow. At most `max_errors`
    errors are kept, all where that is None.
    """
    all_blocks = blocks()
    head, is_whole = _head(all_blocks)
    if foreign := foreign_format(head, is_whole=is_whole):
        return Validation(plan=None, errors=[foreign], error_count=1, estimated_tokens=0)
    endpoint = endpoint or endpoint_of(blocks(), settings=settings)
    first = _Pass(endpoint, settings, max_errors)
    first.read(itertools.chain([head], all_blocks))
    twins, more = repeated(first.hashes, most=max_errors)
    if twins:
        second = _Pass(endpoint, settings, max_errors, suspects=twins)
        second.read(blocks())
        first.errors = second.errors
        first.errors.count += more
    if first.errors.count:
        plan = None
    else:
        plan = Plan(
            batch_id=batch_id,
            input_key=input_key,
            size_bytes=first.size,
            sha256=first.digest(),
            endpoint=endpoint,
            total=first.requests,
            chunks=first.chunks(settings),
            models=sorted(first.models),
        )
    return Validation(
        plan=plan,
        errors=first.errors.listed(),
        error_count=first.errors.count,
        estimated_tokens=first.size // BYTES_A_TOKEN,
    )


def endpoint_of(blocks: Iterator[bytes], *, settings: Settings) -> str:
    """The first url in the file that is an allowed endpoint; the first allowed endpoint where there is none."""
    head, is_whole = _head(blocks)
    if foreign_format(head, is_whole=is_whole):  # no line of it has a url
        return settings.endpoints[0]
    for stretch in stretches_of(itertools.chain([head], blocks), max_line_bytes=settings.max_line_bytes):
        for line in stretch.lines:
            found = endpoint_in(line)
            if found in settings.endpoints:
                return str(found)
    return settings.endpoints[0]


def _head(blocks: Iterator[bytes]) -> tuple[bytes, bool]:
    """Take the first blocks, up to `HEAD_BYTES` and a block; true if that was the whole file."""
    head: list[bytes] = []
    size = 0
    for block in blocks:
        head.append(block)
        size += len(block)
        if size >= HEAD_BYTES:
            return b"".join(head), False
    return b"".join(head), True


def repeated(hashes: "array[int]", *, most: int | None) -> tuple[frozenset[int], int]:
    """Return the values that stand in the array more than once, and how many repetitions there are of others.

    Those are enough values for the first `most` repetitions, so that a file of nothing else takes no memory.
    """
    if len(hashes) < 50_000:
        counts = Counter(hashes)
        return frozenset(value for value, times in counts.items() if times > 1), 0
    import numpy as np  # noqa: PLC0415 - only large files are worth its import

    values = np.frombuffer(hashes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    again = np.zeros(len(values), dtype=np.bool_)
    again[order[1:]] = values[order[1:]] == values[order[:-1]]
    repetitions = values[again]
    first = np.unique(repetitions[:most])
    return frozenset(first.tolist()), int(len(repetitions) - np.isin(repetitions, first).sum())


class _Errors:
    """The errors found, up to a number, and how many there were."""

    def __init__(self, most: int | None) -> None:
        self.count = 0
        self._most = most
        self._kept: list[BatchError] = []

    def add(self, line: int | None, faults: Sequence[Fault]) -> None:
        """Take in the faults of a line, or of the file."""
        self.count += len(faults)
        room = len(faults) if self._most is None else max(0, self._most - len(self._kept))
        for code, message, param in faults[:room]:
            self._kept.append(BatchError(code=code, line=line, message=message, param=param))

    def listed(self) -> list[BatchError]:
        """What is reported."""
        if self._most is None or self.count <= self._most:
            return self._kept
        more = self.count - self._most + 1
        notice = BatchError(
            code="too_many_errors",
            message=f"{more:,} more errors are not listed; `batchline validate` prints all of them",
        )
        return [*self._kept[: self._most - 1], notice]


class _Pass:
    """One reading of the file."""

    def __init__(
        self, endpoint: str, settings: Settings, max_errors: int | None, *, suspects: frozenset[int] = frozenset()
    ) -> None:
        self.errors = _Errors(max_errors)
        self.hashes = array("q")
        self.requests = 0
        self.size = 0
        self._settings = settings
        self._rules = Rules(endpoint, settings)
        self.models = self._rules.models
        self._suspects = suspects
        self._first_lines: dict[str, int] = {}
        self._places: list[_Place] = []

    def read(self, blocks: Iterator[bytes]) -> None:
        """Check the whole file."""
        settings = self._settings
        most_lines = min(STRETCH_LINES, settings.chunk_requests or STRETCH_LINES)
        for stretch in stretches_of(blocks, max_line_bytes=settings.max_line_bytes, most_lines=most_lines):
            before = self.requests
            self._check(stretch)
            self._note(stretch, self.requests - before)
        if not self.requests and not self.errors.count:
            self._fail("empty_file", None, "the file holds no request; write one JSON object a line")

    def _note(self, stretch: Stretch, requests: int) -> None:
        """Keep the stretch's place, and tell of limits that it passes."""
        last_line = stretch.first_line + max(1, len(stretch.lines)) - 1
        self._places.append(
            _Place(stretch.start, stretch.end, stretch.first_line, last_line, requests, stretch.sha256)
        )
        most_bytes, most = self._settings.max_file_bytes, self._settings.max_requests
        if self.size <= most_bytes < stretch.end:
            self._fail("file_too_large", None, f"the file is longer than {most_bytes:,} bytes; split it")
        self.size = stretch.end
        if self.requests - requests <= most < self.requests:
            self._fail("too_many_requests", None, f"the file holds more than {most:,} requests; split it")

    def _check(self, stretch: Stretch) -> None:
        """Check a stretch's lines; only what is as it should be takes the short way."""
        if stretch.overlong:
            self.requests += 1
            self.errors.add(stretch.first_line, [overlong(stretch.overlong, self._rules)])
            return
        endpoint, models, add = self._rules.endpoint, self.models, self.hashes.append
        most, is_utf8, suspects = self._rules.max_line_bytes, stretch.is_utf8, self._suspects
        starts: list[int] = []
        for number, line in enumerate(stretch.lines, start=stretch.first_line):
            try:
                request = _decode(line)
                custom_id: str | None = request.custom_id
                body = request.body
                is_plain = (
                    request.url == endpoint
                    and request.method == "POST"
                    and not body.stream
                    and body.model in models
                    and 0 < len(request.custom_id) <= MAX_CUSTOM_ID
                    and len(line) <= most
                    and is_utf8
                    # The decoder takes the last of two members; a body may well have one of that name.
                    and (line.count(b'"custom_id"') == 1 or not has_twice(line, "custom_id"))
                    and (len(line) <= SURELY_FLAT_BYTES or not is_too_deep(line))
                )
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, NotJSONError):
                is_plain = False
            if not is_plain:
                if not line.strip(BLANKS):
                    continue
                starts = starts or [
                    *itertools.accumulate((len(each) + 1 for each in stretch.lines), initial=stretch.start)
                ]
                custom_id = self._look(number, line, starts[number - stretch.first_line])
            self.requests += 1
            if custom_id is not None:
                add(hash(custom_id))
                if suspects and hash(custom_id) in suspects:
                    self._check_twin(number, custom_id)

    def _look(self, number: int, line: bytes, offset: int) -> str | None:
        """Look at an unusual line closely; its custom_id if it has a valid one."""
        found = look_at(line, offset=offset, rules=self._rules)
        self.errors.add(number, found.faults)
        if found.model is not None and not found.faults:
            self.models.add(found.model)
        return found.custom_id

    def _check_twin(self, number: int, custom_id: str) -> None:
        first = self._first_lines.setdefault(custom_id, number)
        if first != number:
            self._fail(
                "duplicate_custom_id",
                number,
                f"custom_id {custom_id[:60]!r} is already that of line {first}; make each one unique",
                param="custom_id",
            )

    def _fail(self, code: str, line: int | None, message: str, param: str | None = None) -> None:
        self.errors.add(line, [(code, message, param)])

    def digest(self) -> str:
        """The digest of the stretches' digests."""
        return hashlib.sha256("".join(place.sha256 for place in self._places).encode()).hexdigest()

    def chunks(self, settings: Settings) -> list[Chunk]:
        """The chunks of a file without errors."""
        most = settings.chunk_requests or chunk_requests(self.requests, senders=settings.senders)
        groups = _grouped(self._places, most_requests=most, most_bytes=settings.chunk_bytes)
        return [_chunk(index, places) for index, places in enumerate(groups)]


class _Place(msgspec.Struct, frozen=True, gc=False):
    """Where a stretch is, and how many of its lines are requests."""

    start: int
    end: int
    first_line: int
    last_line: int
    requests: int
    sha256: str


def _grouped(places: list[_Place], *, most_requests: int, most_bytes: int) -> list[list[_Place]]:
    """Neighbouring places together up to those limits; one without requests joins what it stands beside."""
    groups: list[list[_Place]] = []
    requests = 0
    for place in places:
        full = requests + place.requests > most_requests or (
            requests and place.end - groups[-1][0].start > most_bytes
        )
        if groups and not (full and place.requests and requests):
            groups[-1].append(place)
            requests += place.requests
        else:
            groups.append([place])
            requests = place.requests
    return groups


def _chunk(index: int, places: list[_Place]) -> Chunk:
    return Chunk(
        index=index,
        requests=sum(place.requests for place in places),
        last_line=places[-1].last_line,
        stretches=[Pinned(place.start, place.end, place.first_line, place.sha256) for place in places],
    )
