"""Defines Prefect blocks for upstreams and storage, which flows refer to by name.

Prefect's pages make a form from each block's JSON schema. They mask a secret only if its type does not allow null;
otherwise it is typed into a plain text area. So optional fields are empty, never null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final

import msgspec
from prefect.blocks.core import Block
from prefect.blocks.fields import SecretDict
from prefect.blocks.webhook import Webhook
from pydantic import BeforeValidator, Field, SecretStr, ValidationError

from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings, load_settings
from batchline.models.upstreams import Upstream

__all__ = ["BLOCK_TYPES", "BlockNames", "StorageBlock", "UpstreamBlock", "Webhook", "settings_from_blocks"]


def _none_to_empty(value: object) -> object:
    """Return the value, or an empty string for the null that blocks of version 0.1 have."""
    return "" if value is None else value


OptionalSecret = Annotated[SecretStr, BeforeValidator(_none_to_empty)]
OptionalText = Annotated[str, BeforeValidator(_none_to_empty)]
OptionalNames = Annotated[list[str], BeforeValidator(lambda value: value or [])]
NO_SECRET: Final = SecretStr("")


class UpstreamBlock(Block):
    """A server that requests are sent to, with its key and its limits."""

    _block_type_name: ClassVar[str] = "Batchline upstream"
    _block_type_slug: ClassVar[str] = "batchline-upstream"
    _description: ClassVar[str] = "An OpenAI-compatible server that batches are sent to."

    base_url: str = Field(description="Such as https://api.openai.com/v1 or http://vllm:8000/v1.")
    api_key: OptionalSecret = Field(default=NO_SECRET, description="The API key; none if empty.")
    models: OptionalNames = Field(default_factory=list, description="Names of its models; all if empty.")
    headers: SecretDict = Field(default_factory=lambda: SecretDict({}), description="Headers of each request.")
    max_in_flight: int = Field(default=64, description="Maximum number of requests in flight.")
    requests_per_minute: int | None = Field(default=None, description="Maximum per minute.")
    tokens_per_minute: int | None = Field(default=None, description="Maximum per minute, input and output.")
    max_attempts: int = Field(default=8, description="Maximum number of attempts per request.")
    connect_timeout_s: float = Field(default=10.0, description="Maximum time to connect.")
    first_byte_timeout_s: float | None = Field(
        default=None, description="Maximum time without data; total_timeout_s if absent."
    )
    total_timeout_s: float = Field(default=1_800.0, description="Maximum duration of an attempt.")

    def upstream(self, name: str) -> Upstream:
        """Return the block as an upstream setting; raises `InvalidInput` if it is invalid."""
        fields = {**_non_empty_fields(self), "headers": self.headers.get_secret_value() or {}}
        try:
            return Upstream(name=name, **fields)
        except ValidationError as error:
            wrong_fields = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
            raise InvalidInput(f"block batchline-upstream/{name} has invalid fields: {wrong_fields}") from None


class StorageBlock(Block):
    """The storage of files and the database of records."""

    _block_type_name: ClassVar[str] = "Batchline storage"
    _block_type_slug: ClassVar[str] = "batchline-storage"
    _description: ClassVar[str] = "The storage of batchline's files and records."

    storage_url: str = Field(description="A directory or s3://bucket/prefix.")
    database_url: OptionalSecret = Field(default=NO_SECRET, description="SQLAlchemy URL of the records.")
    s3_endpoint_url: OptionalText = Field(default="", description="Address of an S3 server other than Amazon's.")
    s3_region: OptionalText = Field(default="", description="Such as eu-central-1.")
    s3_access_key_id: OptionalSecret = Field(default=NO_SECRET, description="Else the AWS default chain.")
    s3_secret_access_key: OptionalSecret = Field(default=NO_SECRET, description="The secret of this id.")

    def settings(self) -> dict[str, Any]:
        """Return the settings that the block overrides; the environment provides the others."""
        return _non_empty_fields(self)


def _non_empty_fields(block: Block) -> dict[str, Any]:
    """Return the block's fields that are not empty."""
    fields = {field: getattr(block, field) for field in type(block).model_fields}
    empty: tuple[object, ...] = (None, "", [], NO_SECRET)
    return {name: value for name, value in fields.items() if value not in empty}


class BlockNames(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the blocks that a run uses; its other processes load the blocks by these."""

    upstreams: tuple[str, ...] = ()
    storage: str | None = None

    def settings(self) -> Settings:
        """Return the settings with the blocks applied."""
        return settings_from_blocks(upstreams=self.upstreams, storage=self.storage)


BLOCK_TYPES: Final[tuple[type[Block], ...]] = (UpstreamBlock, StorageBlock, Webhook)


def settings_from_blocks(*, upstreams: Sequence[str], storage: str | None) -> Settings:
    """Return the environment's settings with overrides from the named blocks.

    Raises `InvalidInput` for a missing or invalid block.
    """
    overrides: dict[str, Any] = {}
    if upstreams:
        overrides["upstreams"] = [_load_block(UpstreamBlock, name).upstream(name) for name in upstreams]
    if storage:
        overrides |= _load_block(StorageBlock, storage).settings()
    return load_settings(**overrides)


def _load_block(block_type: type[Any], name: str) -> Any:
    try:
        return block_type.load(name)
    except ValueError as error:
        raise InvalidInput(
            f"there is no block {block_type.get_block_type_slug()}/{name}; create it on Prefect's page Blocks"
        ) from error
