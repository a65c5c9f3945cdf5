"""API models of batches: OpenAI's Batch object with the Doubleword Control Layer's extensions.

The fields are those of dwctl's batch models, after OpenAI's Batch API reference (`/v1/batches`) and the control
layer's published schema. Times are Unix seconds, UTC.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from batchline.models.analytics import BatchAnalytics
from batchline.models.base import WireModel
from batchline.models.errors import InvalidInput
from batchline.models.options import GivenOptions
from batchline.models.outcomes import Mark
from batchline.models.pagination import CursorPagination, Pagination
from batchline.models.status import BatchStatus

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

INCLUDE_ANALYTICS = "analytics"

_WINDOW_PATTERN = re.compile(r"([1-9][0-9]{0,8})([mhd])", re.ASCII)
_WINDOW_UNIT_S = {"m": 60, "h": 3_600, "d": 86_400}


def window_seconds(window: str) -> int:
    """Return the seconds of a completion window `<n>m`, `<n>h` or `<n>d`; raises `InvalidInput` for others."""
    window_match = _WINDOW_PATTERN.fullmatch(window)
    if window_match is None:
        raise InvalidInput(
            f"completion_window is {window!r}; write a number and m, h or d, such as '90m', '24h' or '7d'",
            param="completion_window",
        )
    return int(window_match[1]) * _WINDOW_UNIT_S[window_match[2]]


def parse_metadata(text: str) -> dict[str, str]:
    """Parse metadata, one `key=value` per line; raises `InvalidInput` for any other line or a duplicate key."""
    pairs: dict[str, str] = {}
    for line_number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        key, separator, value = (field.strip() for field in line.partition("="))
        if not separator or not key:
            raise InvalidInput(f"metadata: line {line_number} is not a pair; write key=value", param="metadata")
        if key in pairs:
            raise InvalidInput(f"metadata: line {line_number} has {key} a second time", param="metadata")
        pairs[key] = value
    return pairs


def require_well_formed(text: str) -> str:
    """Return the text; raises `ValueError` for a lone surrogate, which JSON allows but UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{ascii(text)[:100]} is not valid text: it has half of a surrogate pair") from None
    return text


WellFormedText = Annotated[str, AfterValidator(require_well_formed)]


def validate_metadata(metadata: dict[str, str] | None) -> dict[str, str] | None:
    """Return the metadata unchanged; raises `ValueError` if it exceeds OpenAI's limits."""
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


PauseCode = Literal[
    "by_user",
    "sample",
    "approval",
    "max_cost",
    "max_total_tokens",
    "max_error_rate",
    "identical_failures",
    "quota",
    "unauthorized",
]


class BatchPause(WireModel):
    """The pause of a batch: it sends nothing until it is resumed, and its completion window stands still."""

    at: int = Field(description="When it was paused.")
    code: PauseCode = Field(description="Why: by a person, or the limit that was hit.")
    message: str = Field(description="Why, for a person.")


class BatchError(WireModel):
    """An error of a batch, with the line of the input file if it concerns one."""

    code: str | None = Field(default=None, examples=["invalid_json_line"])
    line: int | None = Field(default=None, ge=1, description="Line of the input file, from 1.", examples=[5])
    message: str = Field(description="What is wrong, for a person.")
    param: str | None = Field(default=None, description="The parameter that caused it, if one did.")


class BatchErrors(WireModel):
    """All errors of a batch."""

    data: list[BatchError]
    object: Literal["list"] = "list"


class RequestCounts(WireModel):
    """The number of requests of a batch, and of those that completed and failed.

    Requests left unanswered by an expired window or a cancel count as neither: in a finished batch they are the
    difference between `total` and the sum of the others.
    """

    total: int = 0
    completed: int = 0
    failed: int = 0


class CreateBatchRequest(BaseModel):
    """The body of a request to create a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_file_id: WellFormedText = Field(
        description="Id of the uploaded file with the requests.", examples=["file-abc123"]
    )
    endpoint: WellFormedText = Field(
        description="Endpoint of all requests in the file.", examples=["/v1/chat/completions"]
    )
    completion_window: str = Field(
        default="24h", description="Time in which the batch must finish: <n>m, <n>h or <n>d.", examples=["24h"]
    )
    metadata: dict[str, str] | None = Field(default=None, description="Up to 16 pairs of text.")
    options: GivenOptions | None = Field(
        default=None, description="Rules for answers that are flawed, and for batches that keep failing."
    )

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

    @property
    def given_options(self) -> list[tuple[str, object]]:
        """The options that were given, by name and in its order."""
        return [] if self.options is None else sorted(self.options.given().items())


class RetryRequest(BaseModel):
    """The body of a request to retry a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mark: Mark | None = Field(
        default=None,
        description="Send the completed requests with this mark again, instead of those that did not complete. "
        "Their new answers replace the old ones; a request that fails then is failed.",
    )


class RetryRequestsRequest(BaseModel):
    """The body of a request to retry some requests of a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_ids: list[WellFormedText] = Field(
        min_length=1, description="Request ids or custom_ids.", examples=[["req-abc123-7"]]
    )


Origin = Literal["api", "frontend", "deployment", "cli", "sync"]


class BatchDwExtResponse(WireModel):
    """The origin of a batch; all fields but `source` are set only if that is `sync`."""

    source: Origin
    source_name: str | None = None
    source_id: str | None = None
    source_file: str | None = None
    sync_id: str | None = None


class InputTokensDetails(WireModel):
    """Details of the prompt tokens."""

    cached_tokens: int = Field(description="Read from the server's cache.")


class OutputTokensDetails(WireModel):
    """Details of the completion tokens."""

    reasoning_tokens: int


class BatchUsage(WireModel):
    """Token usage of a finished batch, as in OpenAI's Batch object; 0 if no response reports a value."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def from_analytics(cls, analytics: BatchAnalytics) -> Self:
        """Return the usage part of the analytics."""
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
    options: GivenOptions | None = Field(default=None, description="Those that were given.")
    paused: BatchPause | None = Field(default=None, description="While the batch is paused.")


class BatchListResponse(WireModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchResponse]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


StatusFilter = Literal["in_progress", "completed", "failed", "cancelled", "expired"]


class IncludeQuery(BaseModel):
    """Query parameter that names extra fields to include in a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: str | None = Field(default=None, description="Comma-separated; `analytics` is known.")

    @field_validator("include")
    @classmethod
    def _validate_include(cls, include: str | None) -> str | None:
        for name in (include or "").split(","):
            if name.strip() not in {INCLUDE_ANALYTICS, ""}:
                raise ValueError(f"include has {name.strip()!r}; only {INCLUDE_ANALYTICS!r} is known")
        return include

    @property
    def includes_analytics(self) -> bool:
        """True if the batch's analytics are to be included."""
        return any(name.strip() == INCLUDE_ANALYTICS for name in (self.include or "").split(","))


class ListBatchesQuery(CursorPagination, IncludeQuery):
    """Query parameters of a list of batches."""

    search: str | None = Field(
        default=None, description="Part of a batch id, input filename or metadata; case does not matter."
    )
    member_id: UUID | None = Field(default=None, description="Member that created the batch.")
    status: StatusFilter | None = Field(
        default=None,
        description="`in_progress` includes validating and finalizing, `cancelled` includes cancelling, "
        "`expired` includes batches that are overdue or ended after their deadline.",
    )
    paused: bool | None = Field(default=None, description="Only paused batches, or only those that are not.")
    created_after: datetime | None = Field(default=None, description="ISO 8601, inclusive.")
    created_before: datetime | None = Field(default=None, description="ISO 8601, inclusive.")
    active_first: bool = Field(default=False, description="Unfinished batches first, each group newest first.")


class BatchResultsQuery(Pagination):
    """Query parameters of the results of a batch."""

    search: str | None = Field(default=None, description="Part of a custom_id; case does not matter.")
    status: Literal["pending", "in_progress", "completed", "failed", "expired", "cancelled"] | None = None


class BatchResultItem(WireModel):
    """A request of a batch and its result."""

    id: str
    custom_id: str
    model: str | None = None
    input_body: Any = None
    response_body: Any = None
    error: str | None = None
    status: str
    finish_reason: str | None = Field(
        default=None, description="Why the server ended the answer, in its own word."
    )
    mark: str | None = Field(
        default=None, description="A flaw of an answer that counts as completed: `truncated` or `invalid_output`."
    )
