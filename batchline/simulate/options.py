"""Options of the simulator. Shares are of all requests, from 0 to 1; durations in seconds."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from batchline.simulate.fault_kinds import FAULT_KINDS


class SimulatorOptions(BaseModel):
    """Options of the simulator; the same seed and requests give the same behaviour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65_535, description="0 chooses a free port.")
    seed: int = Field(default=0, ge=-(2**63), lt=2**63, description="Seed of the random latencies and faults.")
    api_key: SecretStr | None = Field(default=None, description="Requests without this key get a 401.")
    models: tuple[str, ...] = Field(
        default=(), description="Models that are served, others get a 404; by default all."
    )

    latency: Literal["fixed", "uniform", "lognormal"] = "fixed"
    latency_s: float = Field(
        default=0.0, ge=0, description="Fixed latency, mean of uniform, or median of lognormal."
    )
    latency_sigma: float = Field(
        default=1.0, ge=0, description="Standard deviation of the logarithm, for lognormal."
    )
    first_byte_share: float = Field(
        default=1.0, ge=0, le=1, description="Share of the latency before the first byte; the body comes after."
    )
    answer_tokens: int = Field(default=60, ge=1, le=5_000_000, description="Approximate length of an answer.")

    faults: dict[str, float] = Field(default={}, description="Shares of kinds of faults; see docs/faults.md.")
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
        default=None, description="File for a JSON line per request and per good answer, with the body's `user`."
    )
    down_from_s: float | None = Field(
        default=None, ge=0, description="Time after the start from which connections are refused."
    )
    down_for_s: float = Field(default=60.0, ge=0, description="Time for which connections are refused.")

    @field_validator("faults")
    @classmethod
    def _check_faults(cls, faults: dict[str, float]) -> dict[str, float]:
        for name, share in faults.items():
            if name not in FAULT_KINDS:
                raise ValueError(f"no fault is named {name!r}; the faults are {', '.join(FAULT_KINDS)}")
            if not 0 <= share <= 1:
                raise ValueError(f"the share of {name} must be from 0 to 1, not {share}")
        return faults
