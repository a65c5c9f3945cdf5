"""A file cut into stretches: every line once, in its place, however the blocks arrive."""

import hashlib
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchline.steps.line_blocks import SLICE_BYTES, UTF8_BOM, LineBlock, split_line_blocks

LINES = st.lists(st.sampled_from([b"", b"\r", b"a", b"bb", "é".encode(), b"\xff", b"long line", b"x" * 40]))
FILES = st.builds(
    lambda mark, lines, end: (UTF8_BOM if mark else b"") + b"\n".join(lines) + end,
    st.booleans(),
    LINES,
    st.sampled_from([b"", b"\n"]),
)
CUTS = st.lists(st.integers(0, 200), max_size=6)
MOST_LINES = st.integers(1, 5)


def cut(text: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The text in blocks that end at those places."""
    places = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    return (text[start:end] for start, end in itertools.pairwise(places))


def every_line(stretches: list[LineBlock]) -> list[tuple[int, int, bytes | int]]:
    """Number, start and content of each line; the length of one that was not kept."""
    found: list[tuple[int, int, bytes | int]] = []
    for stretch in stretches:
        if stretch.too_long_bytes:
            found.append((stretch.first_line, stretch.start, stretch.too_long_bytes))
        at = stretch.start
        for number, line in enumerate(stretch.lines, start=stretch.first_line):
            found.append((number, at, line))
            at += len(line) + 1
    return found


def expected_lines(text: bytes) -> list[tuple[int, int, bytes]]:
    at = len(UTF8_BOM) if text.startswith(UTF8_BOM) else 0
    lines = text[at:].split(b"\n")
    if not lines[-1]:
        lines.pop()
    found = []
    for number, line in enumerate(lines, start=1):
        found.append((number, at, line))
        at += len(line) + 1
    return found


@given(FILES, CUTS, MOST_LINES)
@example(UTF8_BOM + b"a\nb", [1, 2], 1)
@example(UTF8_BOM, [1, 2], 1)
@settings(deadline=None)
def test_lines_are_split_once_with_number_and_offset(text, cuts, most_lines):
    stretches = list(split_line_blocks(cut(text, cuts), max_line_bytes=1_000, max_lines=most_lines))

    assert every_line(stretches) == expected_lines(text)


@given(FILES, CUTS, MOST_LINES)
@settings(deadline=None)
def test_line_blocks_tile_the_file_after_the_byte_order_mark(text, cuts, most_lines):
    at = len(UTF8_BOM) if text.startswith(UTF8_BOM) else 0
    for stretch in split_line_blocks(cut(text, cuts), max_line_bytes=1_000, max_lines=most_lines):
        assert stretch.start == at
        assert stretch.sha256 == hashlib.sha256(text[stretch.start : stretch.end]).hexdigest()
        assert len(stretch.lines) <= most_lines
        at = stretch.end

    assert at == len(text)


@given(FILES, CUTS)
@settings(deadline=None)
def test_line_block_reports_if_its_bytes_are_utf8(text, cuts):
    for stretch in split_line_blocks(cut(text, cuts), max_line_bytes=1_000):
        assert stretch.is_utf8 == (b"\xff" not in text[stretch.start : stretch.end])


@given(FILES, CUTS, MOST_LINES)
@settings(deadline=None)
def test_line_over_limit_keeps_the_positions_of_other_lines(text, cuts, most_lines):
    text = text.removeprefix(UTF8_BOM)
    stretches = list(split_line_blocks(cut(text, cuts), max_line_bytes=8, max_lines=most_lines))

    found = every_line(stretches)

    for (number, at, content), (true_number, true_at, line) in zip(found, expected_lines(text), strict=True):
        assert (number, at) == (true_number, true_at)
        assert content == line or (content == len(line) and len(line) > 8)


@pytest.mark.parametrize("block_bytes", [1_000, SLICE_BYTES, 10**6], ids=str)
def test_line_far_over_limit_is_not_kept_in_memory(block_bytes):
    text = b"a\n" + b"x" * 10**6 + b"\nb\n"
    blocks = (text[at : at + block_bytes] for at in range(0, len(text), block_bytes))

    stretches = list(split_line_blocks(blocks, max_line_bytes=1_000))

    assert [stretch.too_long_bytes for stretch in stretches if not stretch.lines] == [10**6]
    assert [line for stretch in stretches for line in stretch.lines] == [b"a", b"b"]
    assert max(stretch.end - stretch.start for stretch in stretches if stretch.lines) <= SLICE_BYTES


def test_empty_file_has_no_line_blocks():
    assert list(split_line_blocks(iter([b"", b""]), max_line_bytes=10)) == []
