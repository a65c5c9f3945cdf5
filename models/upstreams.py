"""Configuration of an upstream model server."""

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

Dialect = Literal["openai", "anthropic"]

_API_KEY_PATTERN = re.compile(r"[!-~]*")
# RFC 9110 calls this a token.
_HEADER_NAME_PATTERN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ENDPOINT_PATHS = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/responses",
    "/messages",
    "/moderations",
    "/images/generations",
)
_HEADER_VALUE_PATTERN = re.compile(r"[\t -~]*")


class Upstream(BaseModel):
    """An OpenAI-compatible server: its address, key and limits. Durations in seconds."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    name: str = Field(default="default", pattern=r"^[A-Za-z0-9._-]+$")
    """Name in messages; unique among the upstreams."""

    base_url: str = Field(examples=["http://localhost:8000/v1"])
    """Address, with or without a final `/v1`."""

    api_key: SecretStr | None = None
    """API key; sent as a bearer token, or as the dialect requires."""

    models: frozenset[str] | None = None
    """Models that it serves; by default all models."""

    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Headers of every request."""

    max_in_flight: int = Field(default=64, ge=1, le=10_000)
    """Maximum requests in flight, of all processes together."""

    min_in_flight: int = Field(default=1, ge=1)
    """Minimum of the adaptive limit."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Maximum requests in any minute, of all processes together; unlimited by default."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Maximum tokens in any minute, of all processes together; unlimited by default."""

    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Timeout for opening a connection."""

    first_byte_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="Maximum silence before and within an answer; by default `total_timeout_s`, because an "
        "answer that is not streamed begins when it is complete.",
    )
    total_timeout_s: float = Field(default=1_800.0, gt=0)
    """Timeout of one attempt, from start to end."""

    answers: Literal["checked", "any"] = "checked"
    """With any, a 2xx is a success if it is JSON and not an error object, whatever it answers."""

    max_attempts: int = Field(default=8, ge=1, le=100)
    """Maximum attempts per request; an attempt that finds no connection is not counted."""

    backoff_base_s: float = Field(default=0.5, gt=0)
    """Maximum wait after the first failed attempt; it doubles with each further one."""

    backoff_cap_s: float = Field(default=60.0, gt=0)
    """Limit of the doubled wait."""

    max_response_bytes: int = Field(default=256 * 2**20, ge=1)
    """Maximum size of an answer; a longer one is rejected."""

    max_request_bytes_in_flight: int = Field(default=32 * 2**20, ge=1)
    """Maximum total size of the bodies in flight; a single request is always sent."""

    verify_tls: bool = True
    """Verify the server's certificate."""

    ca_file: str | None = None
    """PEM file with an additional root certificate."""

    @field_validator("base_url")
    @classmethod
    def _validate_base_url(cls, base_url: str) -> str:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be a http:// or https:// address, such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ValueError("must not hold a user name or password; use api_key or headers")
        path = parts.path.rstrip("/")
        if endpoint := next((known for known in _ENDPOINT_PATHS if path.endswith(known)), None):
            path = path.removesuffix(endpoint)
            corrected_url = parts._replace(path=path, query="", fragment="").geturl()
            raise ValueError(
                f"must not end in an endpoint ({endpoint}), which each request names: write {corrected_url}"
            )
        if parts.query or parts.fragment:
            raise ValueError("must have no query and no fragment")
        try:  # `port` raises ValueError if it is out of range or not a number
            has_valid_port = parts.port != 0
        except ValueError:
            has_valid_port = False
        if not has_valid_port:
            raise ValueError("must have a port from 1 to 65535, or none")
        return base_url.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _validate_api_key(cls, api_key: SecretStr | None) -> SecretStr | None:
        if api_key is not None and not _API_KEY_PATTERN.fullmatch(api_key.get_secret_value()):
            raise ValueError("must be printable ASCII without spaces and line breaks (is there one at its end?)")
        return api_key

    @field_validator("headers")
    @classmethod
    def _validate_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not _HEADER_NAME_PATTERN.fullmatch(name):
                raise ValueError(f"have the name {name!r}, which no header can have")
            if not _HEADER_VALUE_PATTERN.fullmatch(value.get_secret_value()):
                raise ValueError(f"have a value of {name} that is not printable ASCII on one line")
        return headers

    @model_validator(mode="after")
    def _validate_in_flight_limits(self) -> Self:
        if self.min_in_flight > self.max_in_flight:
            raise ValueError("min_in_flight is above max_in_flight")
        return self

    @property
    def idle_timeout_s(self) -> float:
        """Seconds without a received byte after which an attempt times out."""
        return self.first_byte_timeout_s or self.total_timeout_s

    def serves(self, model: str) -> bool:
        """Return True if the upstream serves the model."""
        return self.models is None or model in self.models

    def url_for(self, path: str) -> str:
        """Return the URL of a request path; a base URL that ends in `/v1` replaces the path's own `/v1`."""
        if self.base_url.endswith("/v1") and path.startswith("/v1/"):
            return self.base_url + path.removeprefix("/v1")
        return self.base_url + path


def dialect_of(endpoint: str) -> Dialect:
    """Return the dialect (key header, usage fields) of the endpoint: `/v1/messages` is Anthropic's."""
    return "anthropic" if endpoint == "/v1/messages" else "openai"
