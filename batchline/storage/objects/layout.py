"""Keys of the objects of files and batches.

```
files/<file id>/content.jsonl
batches/<batch id>/plan.json
batches/<batch id>/g<generation>/segments/<chunk>.e<epoch>.<n>.jsonl      while a chunk runs
batches/<batch id>/g<generation>/parts/<chunk>.e<epoch>.{output.jsonl,errors.jsonl,parquet}
batches/<batch id>/g<generation>/parts/<chunk>.e<epoch>.<sender>.{output.jsonl,errors.jsonl}
batches/<batch id>/{output.jsonl,errors.jsonl,requests.parquet,manifest.json,report.json,report.html}
batches/<batch id>/g<generation>/plan.<token>.json                        of a retry
batches/<batch id>/g<generation>/final.<epoch>/{output.jsonl,errors.jsonl,requests.parquet,manifest.json}
batches/<batch id>/first.<token>/{output.jsonl,errors.jsonl,requests.parquet,manifest.json}
```

Keys contain the retry generation and the lease's epoch, so that no runner overwrites the objects of another. If
several processes send for one runner, the keys of lines contain the sender too: two may send the same chunk, if
one was taken for dead, and the first to write the part's metrics has made the part. Objects directly below the
batch are published; those of a retried batch are copies of the newest generation. The first retry moves the first
generation's objects to `first.<token>`, which the clean-up of a generation never touches.
"""

import re
from typing import NamedTuple

_PART_KEY = re.compile(r"batches/([^/]+)/g(\d+)/parts/(\d+)\.e(\d+)\.parquet")
_OWN_KEY = re.compile(r"(?:files/file|batches/batch)-[0-9a-f]{32}/")
_GENERATION_KEY = re.compile(r"batches/[^/]+/g(\d+)/(?:segments/|parts/|final\.)")
_SEGMENT_KEY = re.compile(r"batches/([^/]+)/g(\d+)/segments/(\d+)\.e(\d+)\.(\d+)\.jsonl")


class PartKeys(NamedTuple):
    """The objects of one part."""

    output: str
    errors: str
    metrics: str


class PartName(NamedTuple):
    """The fields of a part's key."""

    batch_id: str
    generation: int
    chunk: int
    epoch: int


class SegmentName(NamedTuple):
    """The fields of a segment's key; `number` orders the segments of a chunk and epoch."""

    batch_id: str
    generation: int
    chunk: int
    epoch: int
    number: int


def input_key(file_id: str) -> str:
    """Return the key of an input file's content."""
    return f"files/{file_id}/content.jsonl"


def plan_key(batch_id: str) -> str:
    """Return the key of a batch's plan."""
    return f"batches/{batch_id}/plan.json"


def generation_prefix(batch_id: str, generation: int) -> str:
    """Return the prefix of a generation's own objects."""
    return f"batches/{batch_id}/g{generation}/"


def is_own_key(key: str) -> bool:
    """Return True if the key is below the folder of a file or a batch; others may belong to other programs."""
    return _OWN_KEY.match(key) is not None


def generation_of(key: str) -> int | None:
    """Return the generation of a segment, part or final file; None for any other object."""
    match = _GENERATION_KEY.match(key)
    return None if match is None else int(match[1])


def segments_prefix(batch_id: str, generation: int) -> str:
    """Return the prefix of a generation's segments."""
    return f"batches/{batch_id}/g{generation}/segments/"


def segment_key(batch_id: str, generation: int, chunk: int, epoch: int, number: int) -> str:
    """Return the key of a segment."""
    return f"{segments_prefix(batch_id, generation)}{chunk:06}.e{epoch}.{number}.jsonl"


def parse_segment(key: str) -> SegmentName:
    """Return the fields of a segment's key; raises `ValueError` for any other key."""
    match = _SEGMENT_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is not the key of a segment")
    return SegmentName(match[1], *map(int, match.groups()[1:]))


def parts_prefix(batch_id: str, generation: int) -> str:
    """Return the prefix of a generation's parts."""
    return f"batches/{batch_id}/g{generation}/parts/"


def part_keys(batch_id: str, generation: int, chunk: int, epoch: int, *, sender: str = "") -> PartKeys:
    """Return the keys of a part whose lines that sender wrote; the runner's own process has an empty name."""
    stem = f"{parts_prefix(batch_id, generation)}{chunk:06}.e{epoch}"
    lines_stem = f"{stem}.{sender}" if sender else stem
    return PartKeys(f"{lines_stem}.output.jsonl", f"{lines_stem}.errors.jsonl", f"{stem}.parquet")


def parse_part(key: str) -> PartName:
    """Return the fields of the key of a part's metrics; raises `ValueError` for any other key."""
    match = _PART_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is not the key of a part's metrics")
    return PartName(match[1], *map(int, match.groups()[1:]))


def retry_plan_key(batch_id: str, generation: int, token: str) -> str:
    """Return the key of a retry's plan; the token distinguishes concurrent retries."""
    return f"batches/{batch_id}/g{generation}/plan.{token}.json"


class FinalKeys(NamedTuple):
    """The keys of final files: result lines, error lines, metrics per request, and a manifest of the parts."""

    output: str
    errors: str
    requests: str
    manifest: str


_FINAL_NAMES = FinalKeys("output.jsonl", "errors.jsonl", "requests.parquet", "manifest.json")


def final_prefix(batch_id: str, generation: int, token: str) -> str:
    """Return the prefix of a generation's final files; the token distinguishes writers."""
    return f"batches/{batch_id}/g{generation}/final.{token}/"


def first_final_prefix(batch_id: str, token: str) -> str:
    """Return the prefix of the first generation's final files in a retried batch."""
    return f"batches/{batch_id}/first.{token}/"


def final_keys(prefix: str) -> FinalKeys:
    """Return the keys of the final files below that prefix."""
    return FinalKeys(*(prefix + name for name in _FINAL_NAMES))


def published_keys(batch_id: str) -> FinalKeys:
    """Return the keys of the published files, which are the newest generation's."""
    return final_keys(batch_prefix(batch_id))


def batch_prefix(batch_id: str) -> str:
    """Return the prefix of all objects of a batch."""
    return f"batches/{batch_id}/"


def output_key(batch_id: str) -> str:
    """Return the key of the published output file."""
    return published_keys(batch_id).output


def errors_key(batch_id: str) -> str:
    """Return the key of the published error file."""
    return published_keys(batch_id).errors


def requests_key(batch_id: str) -> str:
    """Return the key of the published Parquet file with a row of metrics per request."""
    return published_keys(batch_id).requests


def manifest_key(batch_id: str) -> str:
    """Return the key of the published manifest."""
    return published_keys(batch_id).manifest


def report_data_key(batch_id: str) -> str:
    """Return the key of the report's data."""
    return f"batches/{batch_id}/report.json"


def report_page_key(batch_id: str) -> str:
    """Return the key of the report as an HTML page."""
    return f"batches/{batch_id}/report.html"
