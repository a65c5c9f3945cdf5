"""API models of files: OpenAI's File object."""

from typing import Literal
from uuid import UUID

from pydantic import Field

from batchline.models.base import WireModel
from batchline.models.pagination import CursorPagination

FilePurpose = Literal["batch", "batch_output"]
"""OpenAI has no separate purpose for error files: both result files of a batch are `batch_output`."""


MAX_FILES_PAGE_SIZE = 10_000
"""Maximum files on a page, and the default `limit`, as in OpenAI's API."""


class FileObject(WireModel):
    """A stored file; `bytes` is its decompressed size."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: FilePurpose
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: int | None = Field(default=None, description="Time from which it may be deleted, in Unix seconds.")


class FileListResponse(WireModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class ListFilesQuery(CursorPagination):
    """Query parameters of a list of files."""

    limit: int = Field(default=MAX_FILES_PAGE_SIZE, ge=1, le=MAX_FILES_PAGE_SIZE)
    purpose: FilePurpose | None = None
    search: str | None = Field(default=None, description="Part of the filename; case does not matter.")
    member_id: UUID | None = Field(default=None, description="Member that uploaded the file or created the batch.")
    order: Literal["asc", "desc"] = Field(default="desc", description="`desc` is newest first.")
