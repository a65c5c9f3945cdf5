"""Files as the API shows them: OpenAI's File object."""

from typing import Literal
from uuid import UUID

from pydantic import Field

from batchline.models.base import WireModel
from batchline.models.pagination import CursorPagination

FilePurpose = Literal["batch", "batch_output"]
"""OpenAI knows no purpose of its own for error files: both result files of a batch are `batch_output`."""


MAX_FILES_PAGE_SIZE = 10_000
"""The most files on a page, and as many as there are if no `limit` is given: so it is at OpenAI."""


class FileObject(WireModel):
    """A stored file; `bytes` is its decompressed size."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: FilePurpose
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: int | None = Field(default=None, description="When it may be deleted, in Unix seconds.")


class FileListResponse(WireModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class ListFilesQuery(CursorPagination):
    """Which files to list."""

    limit: int = Field(default=MAX_FILES_PAGE_SIZE, ge=1, le=MAX_FILES_PAGE_SIZE)
    purpose: FilePurpose | None = None
    search: str | None = Field(default=None, description="Part of the filename; case does not matter.")
    member_id: UUID | None = Field(default=None, description="Who uploaded the file, or made the batch.")
    order: Literal["asc", "desc"] = Field(default="desc", description="`desc` is newest first.")
