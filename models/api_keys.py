"""API keys and their owners."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from batchline.models.base import WireModel

Role = Literal["member", "manager"]


class MemberObject(WireModel):
    """An owner of files and batches; a manager sees those of all members."""

    id: str
    name: str
    role: Role


class KeyLimits(BaseModel):
    """Limits of a key; an absent limit is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_upload_bytes: int | None = Field(default=None, ge=1, description="Largest file, decompressed.")
    max_open_batches: int | None = Field(default=None, ge=1, description="Unfinished batches of its member.")
    requests_per_minute: int | None = Field(default=None, ge=1, description="Calls of the API in any minute.")


class KeyObject(WireModel):
    """An API key; `token` is shown only once, when the key is created."""

    id: str
    object: Literal["key"] = "key"
    member: MemberObject
    hint: str = Field(description="The end of the token.")
    created_at: int
    revoked_at: int | None = None
    max_upload_bytes: int | None = None
    max_open_batches: int | None = None
    requests_per_minute: int | None = None
    token: str | None = None
