"""Keys and the members whose they are."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from batchline.models.base import WireModel

Role = Literal["member", "manager"]


class MemberObject(WireModel):
    """Somebody who has files and batches; a manager sees everybody's."""

    id: str
    name: str
    role: Role


class KeyLimits(BaseModel):
    """What may be done with a key; a limit that is absent does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_upload_bytes: int | None = Field(default=None, ge=1, description="Largest file, decompressed.")
    max_open_batches: int | None = Field(default=None, ge=1, description="Batches of its member not over yet.")
    requests_per_minute: int | None = Field(default=None, ge=1, description="Calls of the API in any minute.")


class KeyObject(WireModel):
    """A key; `token` is shown once, when it is made."""

    id: str
    object: Literal["key"] = "key"
    member: MemberObject
    hint: str = Field(description="How the token ends.")
    created_at: int
    revoked_at: int | None = None
    max_upload_bytes: int | None = None
    max_open_batches: int | None = None
    requests_per_minute: int | None = None
    token: str | None = None
