"""Names of the objects that a batch leaves on storage.

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

Names carry the retry generation and the lease's epoch, so that no runner overwrites what another wrote; those of
lines the sender too, where several processes send for one runner: of two that send the same chunk, since one was
taken for dead, the first to write the part's figures has made the part. What is
directly below the batch is for everybody; of a retried batch these are copies of the newest generation. The
first generation's are moved aside by the first retry, to a place that no generation's clean-up touches.
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


def generation_prefix(batch_id: str, generation: int) -> str:
    """What the keys of a generation's own objects start with."""
    return f"batches/{batch_id}/g{generation}/"


def is_own_key(key: str) -> bool:
    """True if the key is below the folder of a file or a batch; what lies elsewhere may be another program's."""
    return _OWN_KEY.match(key) is not None


def generation_of(key: str) -> int | None:
    """The generation whose segment, part or final file that is; None for any other object."""
    match = _GENERATION_KEY.match(key)
    return None if match is None else int(match[1])


def segments_prefix(batch_id: str, generation: int) -> str:
    """What the keys of a generation's segments start with."""
    return f"batches/{batch_id}/g{generation}/segments/"


def segment_key(batch_id: str, generation: int, chunk: int, epoch: int, number: int) -> str:
    """One segment."""
    return f"{segments_prefix(batch_id, generation)}{chunk:06}.e{epoch}.{number}.jsonl"


def parse_segment(key: str) -> SegmentName:
    """What that segment's key says; raises `ValueError` for another key."""
    match = _SEGMENT_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is not the key of a segment")
    return SegmentName(match[1], *map(int, match.groups()[1:]))


def parts_prefix(batch_id: str, generation: int) -> str:
    """What the keys of a generation's parts start with."""
    return f"batches/{batch_id}/g{generation}/parts/"


def part_keys(batch_id: str, generation: int, chunk: int, epoch: int, *, sender: str = "") -> PartKeys:
    """The objects of one part, with lines by that sender; the runner's own process has no name."""
    stem = f"{parts_prefix(batch_id, generation)}{chunk:06}.e{epoch}"
    lines_stem = f"{stem}.{sender}" if sender else stem
    return PartKeys(f"{lines_stem}.output.jsonl", f"{lines_stem}.errors.jsonl", f"{stem}.parquet")


def parse_part(key: str) -> PartName:
    """What the key of that part's figures says; raises `ValueError` for another key."""
    match = _PART_KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key} is not the key of a part's figures")
    return PartName(match[1], *map(int, match.groups()[1:]))


def retry_plan_key(batch_id: str, generation: int, token: str) -> str:
    """The plan of a retry; the token keeps two that are made at once apart."""
    return f"batches/{batch_id}/g{generation}/plan.{token}.json"


class FinalKeys(NamedTuple):
    """A batch's files: result lines, error lines, a row of figures for each request, and what they are made of."""

    output: str
    errors: str
    requests: str
    manifest: str


_FINAL_NAMES = FinalKeys("output.jsonl", "errors.jsonl", "requests.parquet", "manifest.json")


def final_prefix(batch_id: str, generation: int, token: str) -> str:
    """What the keys of a generation's final files start with; the token keeps those of two writers apart."""
    return f"batches/{batch_id}/g{generation}/final.{token}/"


def first_final_prefix(batch_id: str, token: str) -> str:
    """What the keys of a retried batch's first final files start with."""
    return f"batches/{batch_id}/first.{token}/"


def final_keys(prefix: str) -> FinalKeys:
    """The final files below that prefix."""
    return FinalKeys(*(prefix + name for name in _FINAL_NAMES))


def published_keys(batch_id: str) -> FinalKeys:
    """Where the newest generation's files can be found by anyone."""
    return final_keys(batch_prefix(batch_id))


def batch_prefix(batch_id: str) -> str:
    """What the keys of all that belongs to a batch start with."""
    return f"batches/{batch_id}/"


def output_key(batch_id: str) -> str:
    """The output file, as published."""
    return published_keys(batch_id).output


def errors_key(batch_id: str) -> str:
    """The error file, as published."""
    return published_keys(batch_id).errors


def requests_key(batch_id: str) -> str:
    """A row of figures for each request, as Parquet, as published."""
    return published_keys(batch_id).requests


def manifest_key(batch_id: str) -> str:
    """What the files were made of, as published."""
    return published_keys(batch_id).manifest


def report_data_key(batch_id: str) -> str:
    """The report's figures."""
    return f"batches/{batch_id}/report.json"


def report_page_key(batch_id: str) -> str:
    """The report for people, as a page."""
    return f"batches/{batch_id}/report.html"
