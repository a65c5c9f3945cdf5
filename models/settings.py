"""Loads all settings from the environment, a `.env` file and TOML; `docs/settings.md` is generated from this file.

Highest priority first: arguments, environment variables, `.env`, `batchline.toml` in the working directory,
`config.toml` in batchline's home directory, the defaults below.
"""

import json
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from batchline.models.batches import window_seconds
from batchline.models.environment import read_dotenv, warn_of_unknown_variables
from batchline.models.errors import InvalidInput
from batchline.models.key_trust import require_trusted_address
from batchline.models.upstreams import Upstream

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/moderations",
)


OPENAI_URL = "https://api.openai.com/v1"


_PRICE_LIMITS: Final[dict[str, Any]] = {"ge": 0, "max_digits": 24, "decimal_places": 12}
"""With these limits on digits, costs can be computed without rounding."""


class ModelPrice(BaseModel):
    """The price of a model per million tokens, in one currency for all models."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    input: Decimal = Field(**_PRICE_LIMITS)
    """Prompt tokens."""

    output: Decimal = Field(default=Decimal(0), **_PRICE_LIMITS)
    """Completion tokens."""

    cached_input: Decimal | None = Field(default=None, **_PRICE_LIMITS)
    """Prompt tokens that were read from the server's cache; by default `input`."""

    cache_write: Decimal | None = Field(default=None, **_PRICE_LIMITS)
    """Prompt tokens that were written to the server's cache; by default `input`."""

    reasoning: Decimal | None = Field(default=None, **_PRICE_LIMITS)
    """Completion tokens that were reasoning; by default `output`."""


def home_directory() -> Path:
    """Return batchline's local directory: `BATCHLINE_HOME`, or `~/.batchline`."""
    return Path(os.environ.get("BATCHLINE_HOME") or "~/.batchline").expanduser()


class Settings(BaseSettings):
    """All of batchline's settings. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHLINE_",
        env_file=".env",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    # Where files, records and settings are stored.

    home: Path = Field(default_factory=home_directory)
    """Local directory: the default place of storage, database and `config.toml`."""

    storage_url: str = ""
    """Directory or `s3://bucket/prefix` of files and results; by default `<home>/storage`."""

    database_url: SecretStr = SecretStr("")
    """SQLAlchemy URL of the records, also in Prefect's form; by default SQLite at `<home>/batchline.db`."""

    s3_endpoint_url: str | None = None
    """Address of the S3 server; by default `AWS_ENDPOINT_URL`, or Amazon's."""

    s3_region: str | None = None
    """Region; by default `AWS_DEFAULT_REGION` or the AWS profile's."""

    s3_access_key_id: SecretStr | None = None
    """Access key; by default from AWS's credential chain."""

    s3_secret_access_key: SecretStr | None = None
    """Secret of `s3_access_key_id`."""

    # The servers that answer the requests.

    upstreams: list[Upstream] = Field(default_factory=list)
    """Servers; a request goes to the first one that serves its model. See below."""

    base_url: str | None = None
    """Address of the only server, if `upstreams` is empty; by default `OPENAI_BASE_URL`."""

    api_key: SecretStr | None = None
    """API key of that server; by default `OPENAI_API_KEY`."""

    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")
    """The variable that OpenAI's clients read; used if `base_url` is not set."""

    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    """Likewise for `api_key`. With a key and no address, requests go to OpenAI."""

    trust_working_directory: bool = Field(
        default=False,
        description="Allow sending a key from elsewhere to an address from `.env` or `batchline.toml` in the "
        "working directory. Has no effect in these two files.",
    )
    max_in_flight: int = Field(default=64, ge=1, le=10_000)
    """Maximum requests in flight to that server."""

    max_attempts: int = Field(default=8, ge=1, le=100)
    """Maximum attempts per request at that server."""

    request_timeout_s: float = Field(default=1_800.0, gt=0)
    """Timeout of one attempt at that server."""

    # Prefect: shared limits, deployments, and the processes that send.

    share_budgets: bool = True
    """Apply an upstream's limits to all processes and machines together, through Prefect's server."""

    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    """Prefect's own setting: the server through which `batchline serve` shares limits."""

    deployment: str = Field(default="process-batch/process-batch", pattern="^[^/]+/[^/]+$")
    """Prefect deployment for batches that run as deployment runs: `<flow>/<deployment>`."""

    task_runner: Literal["threads", "processes", "dask", "ray"] = "threads"
    """Senders of a flow's chunks: threads of its process, more processes, or a Dask or Ray cluster."""

    task_runner_address: str | None = None
    """Address of the Dask scheduler or Ray cluster; by default a cluster on this machine."""

    processes: int | None = Field(default=None, ge=1, le=1_000)
    """Processes of that cluster, or on this machine; by default one per core."""

    serve_via: Literal["process", "deployment"] = "process"
    """Place where `batchline serve` runs batches: its own process, or runs of `deployment`."""

    # What a batch may ask for, and its input file contain.

    endpoints: tuple[str, ...] = ENDPOINTS
    """Endpoints that batches may use."""

    min_completion_window: str = "1m"
    """Shortest completion window that a batch may have."""

    max_completion_window: str = "7d"
    """Longest completion window that a batch may have."""

    max_paused: str = "7d"
    """Maximum time that a batch may stay paused; then it ends as expired, with what it has."""

    run_past_window: bool = False
    """Let a batch finish after its completion window instead of expiring it."""

    max_line_bytes: int = Field(default=10_000_000, ge=1)
    """Maximum length of a line of an input file."""

    max_requests: int = Field(default=1_000_000, ge=1)
    """Maximum requests in an input file."""

    max_file_bytes: int = Field(default=10 * 2**30, ge=1)
    """Maximum size of an input file, decompressed."""

    max_member_bytes: int | None = Field(default=None, ge=1)
    """Maximum total size of a member's input files; unlimited by default."""

    max_reported_errors: int = Field(default=1_000, ge=1)
    """Maximum entries in `batch.errors.data`."""

    # Input from elsewhere: addresses and watched folders.

    source_roots: tuple[str, ...] = ()
    """Paths and `s3://` prefixes below which an `input_uri` may be read and a folder watched; by default none."""

    source_still_s: float = Field(default=10.0, ge=0)
    """Time for which a local file must be unchanged before it is picked up."""

    # Sending: chunks, saving of answers, leases, and reasons to stop.

    chunk_requests: int | None = Field(default=None, ge=1)
    """Maximum requests per chunk; by default it depends on the size of the batch."""

    chunk_bytes: int = Field(default=32 * 2**20, ge=1)
    """Maximum bytes of input per chunk."""

    flush_interval_s: float = Field(default=5.0, gt=0)
    """Maximum time for which an answer is not saved."""

    flush_bytes: int = Field(default=64 * 2**20, ge=1)
    """Maximum bytes of a chunk's answers that are not saved."""

    lease_s: float = Field(default=60.0, gt=0)
    """Time without a heartbeat after which a runner counts as dead."""

    grace_s: float = Field(default=15.0, ge=0)
    """Time that requests in flight have to finish when a batch is stopped."""

    # Costs.

    prices: dict[str, ModelPrice] = Field(default_factory=dict)
    """Prices per model; they take precedence over the price list."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the two TOML files after the environment."""
        del file_secret_settings
        working_directory_toml = _toml_source(settings_cls, Path("batchline.toml"))
        home_toml = _toml_source(settings_cls, home_directory() / "config.toml")
        return init_settings, env_settings, dotenv_settings, working_directory_toml, home_toml

    @property
    def sender_processes(self) -> int:
        """The number of processes that send a batch's chunks."""
        return 1 if self.task_runner == "threads" else self.processes or os.cpu_count() or 1

    @field_validator("home")
    @classmethod
    def _expand_home(cls, home: Path) -> Path:
        return home.expanduser()

    @field_validator("min_completion_window", "max_completion_window", "max_paused")
    @classmethod
    def _validate_completion_window(cls, window: str) -> str:
        try:
            window_seconds(window)
        except InvalidInput:
            raise ValueError("must be a number and m, h or d, such as '90m', '24h' or '7d'") from None
        return window

    @field_validator("upstreams")
    @classmethod
    def _validate_upstream_names(cls, upstreams: list[Upstream]) -> list[Upstream]:
        names = [upstream.name for upstream in upstreams]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"have the same name ({', '.join(duplicates)}); give each a different name")
        return upstreams

    @model_validator(mode="after")
    def _validate_combinations(self) -> Self:
        if window_seconds(self.min_completion_window) > window_seconds(self.max_completion_window):
            raise ValueError("min_completion_window is above max_completion_window")
        if not self.upstreams:
            self._default_upstream()  # raises if it is invalid
        return self

    @property
    def effective_storage_url(self) -> str:
        """The URL of the object store: `storage_url`, or its default below `home`."""
        return self.storage_url or str(self.home / "storage")

    @property
    def effective_database_url(self) -> str:
        """The URL of the database: `database_url`, or its default below `home`. May contain a password."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.home / 'batchline.db'}"

    @property
    def all_upstreams(self) -> tuple[Upstream, ...]:
        """The upstreams in order of preference; empty if none is configured."""
        if self.upstreams:
            return tuple(self.upstreams)
        default = self._default_upstream()
        return () if default is None else (default,)

    def _default_upstream(self) -> Upstream | None:
        """Return the upstream of `base_url` and `api_key`, or None; raises `InvalidInput` if it is invalid."""
        base_url = self.base_url or self.openai_base_url
        api_key = self.api_key or self.openai_api_key
        if not base_url and not api_key:
            return None
        try:
            return Upstream(
                base_url=base_url or OPENAI_URL,
                api_key=api_key,
                max_in_flight=self.max_in_flight,
                max_attempts=self.max_attempts,
                total_timeout_s=self.request_timeout_s,
            )
        except ValidationError as error:
            raise _invalid_settings(error, to_name=self._upstream_variable) from None

    def _upstream_variable(self, field: str) -> str:
        """Return the environment variable of a field of the default upstream."""
        return f"{'BATCHLINE' if getattr(self, field, None) else 'OPENAI'}_{field}".upper()

    def upstream_for(self, model: str | None) -> Upstream | None:
        """Return the first upstream that serves the model, or the first of all if `model` is None."""
        return next((upstream for upstream in self.all_upstreams if model is None or upstream.serves(model)), None)

    def require_endpoint(self, endpoint: str) -> str:
        """Return the endpoint if batches may use it; raises `InvalidInput` otherwise."""
        if endpoint not in self.endpoints:
            raise InvalidInput(
                f"endpoint is {endpoint!r}; allowed are {', '.join(self.endpoints)}", param="endpoint"
            )
        return endpoint

    @property
    def max_paused_s(self) -> int:
        """Seconds that a batch may stay paused."""
        return window_seconds(self.max_paused)

    def require_window_s(self, window: str) -> int:
        """Return the completion window in seconds if it is allowed; raises `InvalidInput` otherwise."""
        seconds = window_seconds(window)
        min_s, max_s = window_seconds(self.min_completion_window), window_seconds(self.max_completion_window)
        if not min_s <= seconds <= max_s:
            raise InvalidInput(
                f"completion_window is {window!r}; allowed is {self.min_completion_window} to "
                f"{self.max_completion_window}",
                param="completion_window",
            )
        return seconds


def load_settings(**overrides: Any) -> Settings:
    """Load the settings; raises an `InvalidInput` that names each wrong setting, never its value."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise _invalid_settings(error) from None
    except SettingsError as error:
        # The message names the field and its source. Drop the cause: it would show the value, maybe a secret.
        raise InvalidInput(f"settings are wrong: {error}; write lists and tables as JSON there") from None
    except UnicodeDecodeError:
        raise InvalidInput("settings cannot be read: .env is not UTF-8") from None
    # pydantic ignores unknown variables, so a misspelt one would have no effect and no message.
    variables = {**read_dotenv(Path(".env")), **os.environ}
    warn_of_unknown_variables(variables, map(_setting_variable, Settings.model_fields))
    _check_base_url(settings, variables)
    if not settings.upstreams:
        require_trusted_address(settings, overrides, config=home_directory() / "config.toml")
    return settings


def _check_base_url(settings: Settings, variables: Mapping[str, str | None]) -> None:
    """Raise `InvalidInput` if a key would go to OpenAI only because a variable for the address is empty."""
    if settings.upstreams or settings.base_url or settings.openai_base_url or not settings.all_upstreams:
        return
    for name in ("BATCHLINE_BASE_URL", "OPENAI_BASE_URL"):
        if variables.get(name) == "":
            raise InvalidInput(
                f"settings are wrong: {name} is set but empty, and with a key alone requests would go to "
                f"{OPENAI_URL}; give the server's address, or unset the variable to send to OpenAI",
                param="base_url",
            )


def to_environment(settings: Settings) -> dict[str, str]:
    """Return environment variables, secrets included, that give another process the same settings."""
    values = settings.model_dump(include=settings.model_fields_set)
    return {
        _setting_variable(name): text
        for name, value in values.items()
        if value is not None and (text := _encode_value(value))
    }


def _setting_variable(setting: str) -> str:
    """Return the name of the environment variable of a setting."""
    return str(Settings.model_fields[setting].validation_alias or f"BATCHLINE_{setting.upper()}")


def _encode_value(value: Any) -> str:
    plain_value = _to_plain_value(value)
    return plain_value if isinstance(plain_value, str) else json.dumps(plain_value, default=_to_plain_value)


def _to_plain_value(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, frozenset | tuple):
        return list(value)
    return str(value) if isinstance(value, Path | Decimal) else value


def _invalid_settings(error: ValidationError, *, to_name: Callable[[str], str] = str) -> InvalidInput:
    """Return the error for settings that do not validate; it names each one and shows no values."""
    messages = [
        f"{to_name('.'.join(map(str, entry['loc'])) or 'together')}: {entry['msg'].removeprefix('Value error, ')}"
        for entry in error.errors(include_input=False, include_url=False)
    ]
    return InvalidInput(f"settings are wrong: {'; '.join(messages)}")


def _toml_source(settings_cls: type[BaseSettings], path: Path) -> TomlConfigSettingsSource:
    """Return the settings of a TOML file, none if it does not exist; raises `InvalidInput` if it is invalid."""
    try:
        source = TomlConfigSettingsSource(settings_cls, path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"settings cannot be read: {path}: {error}") from None
    setting_names = {name for name, field in settings_cls.model_fields.items() if field.validation_alias is None}
    if unknown := sorted(source.toml_data.keys() - setting_names):
        raise InvalidInput(f"settings are wrong: {path} has no such setting: {', '.join(unknown)}")
    return source
