"""Names of the objects that a batch leaves on storage.

```
files/<file id>/content.jsonl
batches/<batch id>/plan.json
batches/<batch id>/g<generation>/segments/<chunk>.e<epoch>.<n>.jsonl      while a chunk runs
batches/<batch id>/g<generation>/parts/<chunk>.e<epoch>.{output.jsonl,errors.jsonl,parquet}
batches/<batch id>/{output.jsonl,errors.jsonl,requests.parquet,report.json,manifest.json}
```

Names carry the retry generation and the lease's epoch, so that no runner overwrites what another wrote.
"""

import re
from typing import NamedTuple

_PART = re.compile(r"batches/([^/]+)/g(\d+)/parts/(\d+)\.e(\d+)\.parquet")
_SEGMENT = re.compile(r"batches/([^/]+)/g(\d+)/segments/(\d+)\.e(\d+)\.(\d+)\.jsonl")


class PartKeys(NamedTuple):
    """The objects of one part."""

    output: str
    errors: str
    figures: str


class PartName(NamedTuple):
    """What a part's key says."""

    batch_id: str
    generation: int
    chunk: int
    epoch: int


class SegmentName(NamedTuple):
    """What a segment's key says; `number` orders the segments of a chunk and epoch."""

    batch_id: str
    generation: int
    chunk: int
    epoch: int
    number: int


def input_key(file_id: str) -> str:
    """An input file's content."""
    return f"files/{file_id}/content.jsonl"


def plan_key(batch_id: str) -> str:
    """A batch's plan."""
    return f"batches/{batch_id}/plan.json"


def segments_prefix(batch_id: str, generation: int) -> str:
    """What the keys of a generation's segments start with."""
    return f"batches/{batch_id}/g{generation}/segments/"


def segment_key(batch_id: str, generation: int, chunk: int, epoch: int, number: int) -> str:
    """One segment."""
    return f"{segments_prefix(batch_id, generation)}{chunk:06}.e{epoch}.{number}.jsonl"


def parse_segment(key: str) -> SegmentName:
    """What that segment's key says; raises `ValueError` for another key."""
    match = _SEGMENT.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is not the key of a segment")
    return SegmentName(match[1], *map(int, match.groups()[1:]))


def parts_prefix(batch_id: str, generation: int) -> str:
    """What the keys of a generation's parts start with."""
    return f"batches/{batch_id}/g{generation}/parts/"


def part_keys(batch_id: str, generation: int, chunk: int, epoch: int) -> PartKeys:
    """The objects of one part."""
    stem = f"{parts_prefix(batch_id, generation)}{chunk:06}.e{epoch}"
    return PartKeys(f"{stem}.output.jsonl", f"{stem}.errors.jsonl", f"{stem}.parquet")


def parse_part(key: str) -> PartName:
    """What the key of that part's figures says; raises `ValueError` for another key."""
    match = _PART.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is not the key of a part's figures")
    return PartName(match[1], *map(int, match.groups()[1:]))


def output_key(batch_id: str) -> str:
    """The output file."""
    return f"batches/{batch_id}/output.jsonl"


def errors_key(batch_id: str) -> str:
    """The error file."""
    return f"batches/{batch_id}/errors.jsonl"


def requests_key(batch_id: str) -> str:
    """A row of figures for each request, as Parquet."""
    return f"batches/{batch_id}/requests.parquet"


def report_data_key(batch_id: str) -> str:
    """The report's figures."""
    return f"batches/{batch_id}/report.json"


def manifest_key(batch_id: str) -> str:
    """What the files were made of."""
    return f"batches/{batch_id}/manifest.json"
