"""What a batch used and how fast it was: `BatchAnalytics`, and the wider report kept beside it."""

from pydantic import BaseModel, ConfigDict, Field

from batchline.models.wire import WireModel


class BatchAnalytics(WireModel):
    """Sums and means over the requests that completed."""

    total_requests: int = 0
    total_prompt_tokens: int = 0
    total_completion_tokens: int = 0
    total_reasoning_tokens: int | None = Field(default=None, description="Absent when no answer reports any.")
    total_tokens: int = 0
    avg_duration_ms: float | None = Field(default=None, description="Mean over the final attempt of each.")
    avg_ttfb_ms: float | None = Field(default=None, description="Mean time to the first byte, as above.")
    total_cost: str | None = Field(
        default=None, description="Exact decimal, in the prices' currency; absent when a price is unknown."
    )


class Percentiles(BaseModel):
    """Points of a distribution, in milliseconds."""

    model_config = ConfigDict(frozen=True)

    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class ModelFigures(BaseModel):
    """One model's share of a batch."""

    model_config = ConfigDict(frozen=True)

    model: str
    requests: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    total_tokens: int = 0
    avg_duration_ms: float | None = None
    cost: str | None = None


class ThroughputPoint(BaseModel):
    """What settled in one stretch of time; `at` is its start in Unix seconds."""

    model_config = ConfigDict(frozen=True)

    at: float
    requests: int
    tokens: int


class BatchReport(BaseModel):
    """Figures of a batch beyond `BatchAnalytics`, over all its requests."""

    model_config = ConfigDict(frozen=True)

    duration_ms: Percentiles | None = Field(default=None, description="Final attempts that completed.")
    ttfb_ms: Percentiles | None = None
    queue_ms: Percentiles | None = Field(
        default=None, description="From being read to the start of the first attempt."
    )
    attempts: int = 0
    retries: dict[str, int] = Field(default_factory=dict, description="Reason → attempts that were repeated.")
    failures: dict[str, int] = Field(default_factory=dict, description="Error code → requests.")
    models: list[ModelFigures] = Field(default_factory=list)
    interval_s: float = Field(default=0.0, description="Length of each point of `throughput`, in seconds.")
    throughput: list[ThroughputPoint] = Field(default_factory=list)
    wasted_tokens: int = Field(default=0, description="Reported by attempts that failed.")
    unpriced_models: list[str] = Field(default_factory=list)
