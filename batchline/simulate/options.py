"""Options of the simulator. Shares are of all requests, from 0 to 1; durations in seconds."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class SimulatorOptions(BaseModel):
    """Options of the simulator; the same seed and requests give the same behaviour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65_535, description="0 takes a free one.")
    seed: int = Field(default=0, ge=-(2**63), lt=2**63, description="Decides on latencies and faults.")
    api_key: SecretStr | None = Field(default=None, description="401 for requests without it.")
    models: tuple[str, ...] = Field(default=(), description="404 for others; any where empty.")

    latency: Literal["fixed", "uniform", "lognormal"] = "fixed"
    latency_s: float = Field(default=0.0, ge=0, description="Fixed, mean of uniform, or median of lognormal.")
    latency_sigma: float = Field(default=1.0, ge=0, description="Of the lognormal.")
    first_byte_share: float = Field(
        default=1.0, ge=0, le=1, description="Share of the latency before the first byte; the body comes after."
    )
    answer_tokens: int = Field(default=60, ge=1, le=5_000_000, description="About how long an answer is.")

    rate_limited: float = Field(default=0.0, ge=0, le=1, description="Answered 429.")
    retry_after: Literal["seconds", "ms", "date", "none"] = "seconds"
    retry_after_s: float = Field(default=1.0, ge=0)
    server_error: float = Field(default=0.0, ge=0, le=1, description="Answered 500.")
    unavailable: float = Field(default=0.0, ge=0, le=1, description="Answered 503.")
    dropped: float = Field(default=0.0, ge=0, le=1, description="Connection closed instead of an answer.")
    cut_off: float = Field(default=0.0, ge=0, le=1, description="Connection closed within the answer.")
    hanging: float = Field(default=0.0, ge=0, le=1, description="No answer, connection left open.")
    truncated: float = Field(default=0.0, ge=0, le=1, description="200 with half of the JSON.")
    html: float = Field(default=0.0, ge=0, le=1, description="200 with a page of HTML.")
    error_object: float = Field(default=0.0, ge=0, le=1, description="200 with an error object.")

    requests_per_minute: int | None = Field(default=None, ge=1, description="429 above it.")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="429 above it.")
    max_concurrent: int | None = Field(default=None, ge=1, description="503 above it.")
    log_file: Path | None = Field(
        default=None, description="Gets a JSON line for each request and each good answer, with the body's `user`."
    )
    down_from_s: float | None = Field(default=None, ge=0, description="After the start: connections are refused …")
    down_for_s: float = Field(default=60.0, ge=0, description="… for so long.")
