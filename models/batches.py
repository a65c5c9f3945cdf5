"""Batches as the API shows them: OpenAI's Batch object with the Doubleword Control Layer's extensions.

Field for field the shapes of dwctl's batch models; their sources are OpenAI's Batch API reference
(`/v1/batches`) and the control layer's published schema. Times are Unix seconds, UTC.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from batchline.models.analytics import BatchAnalytics
from batchline.models.base import WireModel
from batchline.models.errors import InvalidInput
from batchline.models.pagination import CursorPagination, Pagination
from batchline.models.status import BatchStatus

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

INCLUDE_ANALYTICS = "analytics"

_WINDOW_PATTERN = re.compile(r"([1-9][0-9]{0,8})([mhd])", re.ASCII)
_WINDOW_UNIT_S = {"m": 60, "h": 3_600, "d": 86_400}


def window_seconds(window: str) -> int:
    """Seconds in a completion window written `<n>m`, `<n>h` or `<n>d`; raises `InvalidInput` for others."""
    window_match = _WINDOW_PATTERN.fullmatch(window)
    if window_match is None:
        raise InvalidInput(
            f"completion_window is {window!r}; write a number and m, h or d, such as '90m', '24h' or '7d'",
            param="completion_window",
        )
    return int(window_match[1]) * _WINDOW_UNIT_S[window_match[2]]


def parse_metadata(text: str) -> dict[str, str]:
    """Metadata as it is typed, one `key=value` a line; raises `InvalidInput` for a line that is no pair."""
    pairs: dict[str, str] = {}
    for line_number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        key, separator, value = (field.strip() for field in line.partition("="))
        if not separator or not key:
            raise InvalidInput(f"metadata: line {line_number} is no pair; write key=value", param="metadata")
        if key in pairs:
            raise InvalidInput(f"metadata: line {line_number} has {key} a second time", param="metadata")
        pairs[key] = value
    return pairs


def require_well_formed(text: str) -> str:
    """The text; raises `ValueError` for half of a surrogate pair in it, which JSON may bring and nothing keeps."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{ascii(text)[:100]} is no text: it has one half of a surrogate pair") from None
    return text


WellFormedText = Annotated[str, AfterValidator(require_well_formed)]


def validate_metadata(metadata: dict[str, str] | None) -> dict[str, str] | None:
    """The metadata as given; raises `ValueError` where it is over OpenAI's limits (16 pairs, 64, 512)."""
    if metadata is None:
        return None
    if len(metadata) > MAX_METADATA_PAIRS:
        raise ValueError(f"metadata has {len(metadata)} pairs, at most {MAX_METADATA_PAIRS} are allowed")
    for key, value in metadata.items():
        require_well_formed(key)
        require_well_formed(value)
        if len(key) > MAX_METADATA_KEY:
            raise ValueError(f"metadata key {key[:20]!r}… has {len(key)} characters, at most {MAX_METADATA_KEY}")
        if len(value) > MAX_METADATA_VALUE:
            raise ValueError(
                f"metadata value of {key!r} has {len(value)} characters, at most {MAX_METADATA_VALUE}"
            )
    return metadata


class BatchError(WireModel):
    """One thing that is wrong with a batch, at a line of its input file where there is one."""

    code: str | None = Field(default=None, examples=["invalid_json_line"])
    line: int | None = Field(default=None, ge=1, description="Line of the input file, from 1.", examples=[5])
    message: str = Field(description="What is wrong, for a person.")
    param: str | None = Field(default=None, description="The parameter that caused it, if one did.")


class BatchErrors(WireModel):
    """Everything that is wrong with a batch."""

    data: list[BatchError]
    object: Literal["list"] = "list"


class RequestCounts(WireModel):
    """The number of requests of a batch, and of those that completed and failed.

    Requests that the end of the window or a cancel left unanswered count as neither: of a batch that is over they
    are what is missing from `completed` and `failed` to `total`.
    """

    total: int = 0
    completed: int = 0
    failed: int = 0


class CreateBatchRequest(BaseModel):
    """What a new batch is made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_file_id: WellFormedText = Field(
        description="Id of the uploaded file with the requests.", examples=["file-abc123"]
    )
    endpoint: WellFormedText = Field(
        description="The endpoint of every request in it.", examples=["/v1/chat/completions"]
    )
    completion_window: str = Field(
        default="24h", description="How long it may take: <n>m, <n>h or <n>d.", examples=["24h"]
    )
    metadata: dict[str, str] | None = Field(default=None, description="Up to 16 pairs of your own.")

    @field_validator("completion_window")
    @classmethod
    def _validate_completion_window(cls, window: str) -> str:
        try:
            window_seconds(window)
        except InvalidInput as error:
            raise ValueError(str(error)) from error
        return window

    @field_validator("metadata")
    @classmethod
    def _validate_metadata(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        return validate_metadata(metadata)


class RetryRequestsRequest(BaseModel):
    """Which requests of a batch to try again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_ids: list[WellFormedText] = Field(
        min_length=1, description="Request ids or custom_ids.", examples=[["req-abc123-7"]]
    )


Origin = Literal["api", "frontend", "deployment", "cli", "sync"]


class BatchDwExtResponse(WireModel):
    """Where a batch came from; the four `sync` fields only where `source` is `sync`."""

    source: Origin
    source_name: str | None = None
    source_id: str | None = None
    source_file: str | None = None
    sync_id: str | None = None


class InputTokensDetails(WireModel):
    """What is known of the tokens of prompts."""

    cached_tokens: int = Field(description="Read from the server's cache.")


class OutputTokensDetails(WireModel):
    """What is known of the tokens of answers."""

    reasoning_tokens: int


class BatchUsage(WireModel):
    """What a batch that is over has used, as OpenAI's Batch object tells it; 0 for what no answer reports."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def from_analytics(cls, analytics: BatchAnalytics) -> Self:
        """The usage of those analytics."""
        return cls(
            input_tokens=analytics.total_prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=analytics.total_cached_tokens or 0),
            output_tokens=analytics.total_completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=analytics.total_reasoning_tokens or 0),
            total_tokens=analytics.total_tokens,
        )


class BatchResponse(WireModel):
    """A batch."""

    id: str = Field(examples=["batch-0192f0c1a5"])
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None
    analytics: BatchAnalytics | None = None
    dwext: BatchDwExtResponse | None = None
    usage: BatchUsage | None = Field(default=None, description="Once the batch is over.")
    model: str | None = Field(default=None, description="If all requests name the same one.")


class BatchListResponse(WireModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchResponse]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


StatusFilter = Literal["in_progress", "completed", "failed", "cancelled", "expired"]


class IncludeQuery(BaseModel):
    """What to tell of a batch beside itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: str | None = Field(default=None, description="Comma-separated; `analytics` is known.")

    @field_validator("include")
    @classmethod
    def _validate_include(cls, include: str | None) -> str | None:
        for name in (include or "").split(","):
            if name.strip() not in {INCLUDE_ANALYTICS, ""}:
                raise ValueError(f"include has {name.strip()!r}; there is {INCLUDE_ANALYTICS!r} to include")
        return include

    @property
    def includes_analytics(self) -> bool:
        """Whether the batch's analytics are asked for."""
        return any(name.strip() == INCLUDE_ANALYTICS for name in (self.include or "").split(","))


class ListBatchesQuery(CursorPagination, IncludeQuery):
    """Which batches to list."""

    search: str | None = Field(
        default=None, description="Part of a batch id, input filename or metadata; case does not matter."
    )
    member_id: UUID | None = Field(default=None, description="Who made the batch.")
    status: StatusFilter | None = Field(
        default=None,
        description="`in_progress` takes in validating and finalizing, `cancelled` cancelling, "
        "`expired` what is overdue or ended past its deadline.",
    )
    created_after: datetime | None = Field(default=None, description="ISO 8601, inclusive.")
    created_before: datetime | None = Field(default=None, description="ISO 8601, inclusive.")
    active_first: bool = Field(default=False, description="Unfinished batches first, each group newest first.")


class BatchResultsQuery(Pagination):
    """Which results of a batch to read."""

    search: str | None = Field(default=None, description="Part of a custom_id; case does not matter.")
    status: Literal["pending", "in_progress", "completed", "failed", "expired", "cancelled"] | None = None


class BatchResultItem(WireModel):
    """One request of a batch and what became of it."""

    id: str
    custom_id: str
    model: str | None = None
    input_body: Any = None
    response_body: Any = None
    error: str | None = None
    status: str
