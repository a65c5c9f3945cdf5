"""Models of a batch's usage and speed: `BatchAnalytics`, and the more detailed `BatchReport`."""

from pydantic import BaseModel, ConfigDict, Field

from batchline.models.base import WireModel


class BatchAnalytics(WireModel):
    """Sums and means over the completed requests."""

    total_requests: int = 0
    total_prompt_tokens: int = 0
    total_completion_tokens: int = 0
    total_reasoning_tokens: int | None = Field(default=None, description="Absent if no answer reports any.")
    total_tokens: int = 0
    avg_duration_ms: float | None = Field(default=None, description="Mean duration of the final attempts.")
    avg_ttfb_ms: float | None = Field(
        default=None, description="Mean time to the first byte of the final attempts."
    )
    total_cost: str | None = Field(
        default=None, description="Exact decimal, in the prices' currency; absent if a price is unknown."
    )
    total_cached_tokens: int | None = Field(
        default=None, description="Prompt tokens read from the server's cache; absent if no answer reports any."
    )


class Percentiles(BaseModel):
    """Points of a distribution, in milliseconds."""

    model_config = ConfigDict(frozen=True)

    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class DurationBin(BaseModel):
    """Requests whose final attempt took from `from_ms` to below `to_ms`."""

    model_config = ConfigDict(frozen=True)

    from_ms: float
    to_ms: float
    completed: int = 0
    failed: int = 0


class ModelMetrics(BaseModel):
    """Metrics of one model in a batch; tokens and means cover its completed requests."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="Empty for requests that name none.")
    requests: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = Field(default=0, description="Prompt tokens read from the server's cache.")
    cache_write_tokens: int = Field(default=0, description="Prompt tokens written to it.")
    total_tokens: int = 0
    wasted_tokens: int = Field(default=0, description="Reported by answers that failed, or that a retry replaced.")
    without_usage: int = Field(default=0, description="Completed requests whose answers report no tokens.")
    avg_duration_ms: float | None = None
    duration_ms: Percentiles | None = Field(default=None, description="Absent beyond the 100 largest models.")
    completion_tokens_per_s: float | None = Field(
        default=None, description="Completion tokens by the time that the requests took, each for itself."
    )
    cost: str | None = Field(default=None, description="Exact decimal; absent without a price.")
    price_source: str | None = Field(
        default=None, description="`settings`, or provider and model of the price list, such as `openai gpt-4o`."
    )


class ThroughputPoint(BaseModel):
    """Metrics of one time interval; `at` is its start in Unix seconds."""

    model_config = ConfigDict(frozen=True)

    at: float
    requests: int = Field(description="Requests that completed in it.")
    tokens: int = Field(description="Tokens of these requests.")
    failed: int = Field(default=0, description="Requests whose last attempt failed in it.")
    in_flight: float | None = Field(default=None, description="Mean number of final attempts in flight.")


class FailureMessage(BaseModel):
    """An error message and the number of failed requests that have it, whatever ids and numbers are in it."""

    model_config = ConfigDict(frozen=True)

    message: str = Field(description="That of the first of these requests, at most 300 characters.")
    count: int = Field(description="At least so many, if the batch has thousands of different messages.")


class BatchReport(BaseModel):
    """Metrics of a batch beyond `BatchAnalytics`, over all its requests.

    Times are those of each request's final attempt. All fields have defaults, so that reports written by older
    versions can be read.
    """

    model_config = ConfigDict(frozen=True)

    total: int | None = Field(default=None, description="Requests.")
    completed: int | None = None
    failed: int | None = Field(default=None, description="Without those that expired or were cancelled.")
    expired: int = Field(default=0, description="Not answered when the completion window closed.")
    cancelled: int = Field(default=0, description="Not answered when the batch was cancelled.")

    duration_ms: Percentiles | None = Field(default=None, description="Final attempts that completed.")
    ttfb_ms: Percentiles | None = Field(default=None, description="Their time to the first byte.")
    queue_ms: Percentiles | None = Field(
        default=None, description="From being read to the start of the first attempt."
    )
    durations: list[DurationBin] = Field(default_factory=list, description="Ascending, without gaps.")

    attempts: int = 0
    retries: dict[str, int] = Field(default_factory=dict, description="Reason → attempts that were repeated.")
    requests_by_attempts: dict[int, int] = Field(default_factory=dict, description="Attempts → requests.")
    failures: dict[str, int] = Field(default_factory=dict, description="Error code → requests.")
    failure_statuses: dict[str, dict[int, int]] = Field(
        default_factory=dict, description="Error code → HTTP status → requests; 0 stands for no answer."
    )

    failure_messages: dict[str, FailureMessage] = Field(
        default_factory=dict, description="Error code → its most frequent message."
    )

    finish_reasons: dict[str, int] = Field(
        default_factory=dict, description="Why the server ended an answer → completed requests."
    )
    marks: dict[str, int] = Field(
        default_factory=dict,
        description="Flaw, `truncated` or `invalid_output` → completed requests that have it.",
    )

    models: list[ModelMetrics] = Field(default_factory=list)

    interval_s: float = Field(default=0.0, description="Length of each point of `throughput`, in seconds.")
    throughput: list[ThroughputPoint] = Field(default_factory=list)
    first_started_at: float | None = Field(default=None, description="Start of the first final attempt.")
    last_ended_at: float | None = Field(default=None, description="End of the last one.")
    requests_per_s: float | None = Field(default=None, description="Completed, between these two.")
    tokens_per_s: float | None = Field(default=None, description="All tokens, between these two.")
    completion_tokens_per_s: float | None = Field(default=None, description="As above.")

    without_usage: int = Field(
        default=0, description="Completed requests whose answers report no tokens; they count as 0."
    )
    wasted_tokens: int = Field(default=0, description="Reported by answers that failed, or that a retry replaced.")
    wasted_cost_at_most: str | None = Field(
        default=None,
        description="Maximum cost of `wasted_tokens`, at the highest price of each model; absent without a price.",
    )
    known_cost: str | None = Field(default=None, description="Of the models that have a price.")
    unpriced_models: list[str] = Field(default_factory=list)
    currency: str | None = Field(default=None, description="USD if all prices are from the price list.")
    price_list: str | None = Field(default=None, description="The price list in use, with its version.")
