"""Prefect blocks: a server to send to, and where files and records are, each known to flows by a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec
from prefect.blocks.core import Block
from prefect.blocks.fields import SecretDict
from prefect.blocks.webhook import Webhook
from pydantic import Field, SecretStr, ValidationError

from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings, load_settings
from batchline.models.upstreams import Upstream

__all__ = ["BLOCKS", "BlockNames", "StorageBlock", "UpstreamBlock", "Webhook", "settings_of"]


class UpstreamBlock(Block):
    """A server that requests are sent to, with its key and its limits."""

    _block_type_name: ClassVar[str] = "Batchline upstream"
    _block_type_slug: ClassVar[str] = "batchline-upstream"
    _description: ClassVar[str] = "An OpenAI-compatible server that batches are sent to."

    base_url: str = Field(description="Such as https://api.openai.com/v1 or http://vllm:8000/v1.")
    api_key: SecretStr | None = Field(default=None, description="Sent as its dialect wants it.")
    models: list[str] | None = Field(default=None, description="Models that it serves; all where absent.")
    headers: SecretDict = Field(default_factory=lambda: SecretDict({}), description="Sent with each request.")
    max_in_flight: int = Field(default=64, description="Most requests under way at once.")
    requests_per_minute: int | None = Field(default=None, description="Most in any minute.")
    tokens_per_minute: int | None = Field(default=None, description="Most in any minute, in and out.")
    max_attempts: int = Field(default=8, description="Attempts for each request.")
    connect_timeout_s: float = Field(default=10.0, description="For a connection.")
    first_byte_timeout_s: float | None = Field(
        default=None, description="Longest silence of an attempt; total_timeout_s if absent."
    )
    total_timeout_s: float = Field(default=1_800.0, description="For a whole attempt.")

    def upstream(self, name: str) -> Upstream:
        """The same as a setting; raises `InvalidInput` that names the block."""
        fields: dict[str, Any] = {field: getattr(self, field) for field in type(self).model_fields}
        try:
            return Upstream(name=name, **{**fields, "headers": self.headers.get_secret_value()})
        except ValidationError as error:
            wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
            raise InvalidInput(f"block batchline-upstream/{name} is wrong in: {wrong}") from None


class StorageBlock(Block):
    """Where files are stored and records kept."""

    _block_type_name: ClassVar[str] = "Batchline storage"
    _block_type_slug: ClassVar[str] = "batchline-storage"
    _description: ClassVar[str] = "Where batchline stores files and keeps records."

    storage_url: str = Field(description="A directory or s3://bucket/prefix.")
    database_url: SecretStr | None = Field(default=None, description="SQLAlchemy URL of the records.")
    s3_endpoint_url: str | None = Field(default=None, description="Where S3 is not Amazon's own.")
    s3_region: str | None = Field(default=None, description="Such as eu-central-1.")
    s3_access_key_id: SecretStr | None = Field(default=None, description="Else the AWS default chain.")
    s3_secret_access_key: SecretStr | None = Field(default=None, description="Goes with the id.")

    def settings(self) -> dict[str, Any]:
        """The settings that it stands for; what it leaves open is as the environment says."""
        fields = {field: getattr(self, field) for field in type(self).model_fields}
        return {name: value for name, value in fields.items() if value is not None}


class BlockNames(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the blocks that a run uses; all that its other processes are told of them."""

    upstreams: tuple[str, ...] = ()
    storage: str | None = None

    def settings(self) -> Settings:
        """As `settings_of` makes them."""
        return settings_of(upstreams=self.upstreams, storage=self.storage)


BLOCKS: Final[tuple[type[Block], ...]] = (UpstreamBlock, StorageBlock, Webhook)


def settings_of(*, upstreams: Sequence[str], storage: str | None) -> Settings:
    """The environment's settings with what the blocks of those names say instead.

    Raises `InvalidInput` for a block that is not there or wrong.
    """
    changed: dict[str, Any] = {}
    if upstreams:
        changed["upstreams"] = [_loaded(UpstreamBlock, name).upstream(name) for name in upstreams]
    if storage:
        changed |= _loaded(StorageBlock, storage).settings()
    return load_settings(**changed)


def _loaded(kind: type[Any], name: str) -> Any:
    try:
        return kind.load(name)
    except ValueError as error:
        raise InvalidInput(
            f"there is no block {kind.get_block_type_slug()}/{name}; make it on Prefect's page Blocks"
        ) from error
