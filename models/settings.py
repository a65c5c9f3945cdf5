"""Every setting, from the environment, a `.env` file and TOML; `docs/settings.md` is made from this file.

Strongest first: arguments, `BATCHLINE_*` environment variables, `.env`, `batchline.toml` in the working
directory, `config.toml` in the home directory of batchline, the defaults below.
"""

import os
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from batchline.models.batches import window_seconds
from batchline.models.errors import InvalidInput
from batchline.models.upstreams import Upstream

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/moderations",
)


class ModelPrice(BaseModel):
    """What a model costs, per million tokens, in one currency for all models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(ge=0)
    output: Decimal = Field(default=Decimal(0), ge=0)
    cached_input: Decimal | None = Field(default=None, ge=0, description="`input` where absent.")


def home_directory() -> Path:
    """The local directory of batchline: `BATCHLINE_HOME`, or `~/.batchline`."""
    return Path(os.environ.get("BATCHLINE_HOME") or "~/.batchline").expanduser()


class Settings(BaseSettings):
    """All of batchline's settings. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHLINE_",
        env_file=".env",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(default_factory=home_directory, description="Local directory for all that has no other.")
    storage_url: str = Field(default="", description="Directory or `s3://bucket/prefix`; `<home>/storage`.")
    database_url: SecretStr = Field(
        default=SecretStr(""), description="SQLAlchemy URL of the records; SQLite at `<home>/batchline.db`."
    )
    s3_endpoint_url: str | None = Field(default=None, description="Also read from `AWS_ENDPOINT_URL`.")
    s3_region: str | None = Field(default=None, description="Also read from `AWS_REGION`.")
    s3_access_key_id: SecretStr | None = Field(default=None, description="Else the AWS default chain.")
    s3_secret_access_key: SecretStr | None = None

    upstreams: list[Upstream] = Field(
        default_factory=list, description="Servers, the first that serves a model takes it; see below."
    )
    base_url: str | None = Field(
        default=None, description="Of the one server where `upstreams` is empty; else `OPENAI_BASE_URL`."
    )
    api_key: SecretStr | None = Field(default=None, description="Its key; else `OPENAI_API_KEY`.")
    max_in_flight: int = Field(default=64, ge=1, le=10_000, description="Its most requests under way at once.")
    max_attempts: int = Field(default=8, ge=1, le=100, description="Its attempts for each request.")
    request_timeout_s: float = Field(default=1_800.0, gt=0, description="Its limit for one attempt.")

    endpoints: tuple[str, ...] = Field(default=ENDPOINTS, description="The endpoints that batches may use.")
    min_completion_window: str = "1m"
    max_completion_window: str = "7d"
    run_past_window: bool = Field(
        default=False, description="Let a batch finish after its window instead of expiring it."
    )
    max_line_bytes: int = Field(default=10_000_000, ge=1)
    max_requests: int = Field(default=1_000_000, ge=1)
    max_file_bytes: int = Field(default=10 * 2**30, ge=1)
    max_reported_errors: int = Field(default=1_000, ge=1, description="Entries in `batch.errors.data`.")

    source_roots: tuple[str, ...] = Field(
        default=(), description="Prefixes below which a flow may read an `input_uri`; none allows none."
    )
    chunk_requests: int | None = Field(
        default=None, ge=1, description="Requests a chunk; by size of the batch where absent."
    )
    chunk_bytes: int = Field(default=32 * 2**20, ge=1, description="Most bytes of input a chunk.")
    flush_interval_s: float = Field(default=5.0, gt=0, description="At most this long is an answer unsaved.")
    flush_bytes: int = Field(default=8 * 2**20, ge=1, description="Or this many bytes of answers a chunk.")
    lease_s: float = Field(default=60.0, gt=0, description="A runner that is silent for longer is taken for dead.")
    grace_s: float = Field(default=15.0, ge=0, description="For requests under way when a batch is stopped.")
    refusals_to_stop: int = Field(
        default=25, ge=1, description="401 or 403 in a row, before any success, that stop a batch."
    )
    prices: dict[str, ModelPrice] = Field(default_factory=dict, description="Per model, before the price list.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the two TOML files behind the environment."""
        del file_secret_settings
        here = TomlConfigSettingsSource(settings_cls, Path("batchline.toml"))
        at_home = TomlConfigSettingsSource(settings_cls, home_directory() / "config.toml")
        return init_settings, env_settings, dotenv_settings, here, at_home

    @cached_property
    def storage(self) -> str:
        """Where objects are: `storage_url`, or its default below `home`."""
        return self.storage_url or str(self.home / "storage")

    @cached_property
    def database(self) -> str:
        """Where records are: `database_url`, or its default below `home`. May hold a password."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.home / 'batchline.db'}"

    @cached_property
    def servers(self) -> tuple[Upstream, ...]:
        """The upstreams to call, in order of preference; empty when none is configured."""
        if self.upstreams:
            return tuple(self.upstreams)
        base_url = self.base_url or os.environ.get("OPENAI_BASE_URL")
        api_key = self.api_key or _secret(os.environ.get("OPENAI_API_KEY"))
        if not base_url and api_key:
            base_url = "https://api.openai.com/v1"
        if not base_url:
            return ()
        return (
            Upstream(
                base_url=base_url,
                api_key=api_key,
                max_in_flight=self.max_in_flight,
                max_attempts=self.max_attempts,
                total_timeout_s=self.request_timeout_s,
                first_byte_timeout_s=min(600.0, self.request_timeout_s),
            ),
        )

    def upstream_for(self, model: str | None) -> Upstream | None:
        """The first upstream that serves the model; any will do for a request that names none."""
        return next((server for server in self.servers if model is None or server.serves(model)), None)

    def checked_endpoint(self, endpoint: str) -> str:
        """The endpoint, if batches may use it; raises `InvalidInput` otherwise."""
        if endpoint not in self.endpoints:
            raise InvalidInput(
                f"endpoint is {endpoint!r}; allowed are {', '.join(self.endpoints)}", param="endpoint"
            )
        return endpoint

    def checked_window_s(self, window: str) -> int:
        """Seconds in the completion window, if it is allowed; raises `InvalidInput` otherwise."""
        seconds = window_seconds(window)
        least, most = window_seconds(self.min_completion_window), window_seconds(self.max_completion_window)
        if not least <= seconds <= most:
            raise InvalidInput(
                f"completion_window is {window!r}; allowed is {self.min_completion_window} to "
                f"{self.max_completion_window}",
                param="completion_window",
            )
        return seconds


def load_settings(**overrides: Any) -> Settings:
    """The settings in force; raises `InvalidInput` that names each wrong one, never its value."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False)
        )
        raise InvalidInput(f"settings are wrong: {wrong}") from None
    except ValueError as error:
        raise InvalidInput(f"settings cannot be read: {type(error).__name__} in a settings file") from error


def _secret(text: str | None) -> SecretStr | None:
    return SecretStr(text) if text else None
