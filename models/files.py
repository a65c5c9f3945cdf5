"""Files as the API shows them: OpenAI's File object."""

from typing import Literal

from pydantic import Field

from batchline.models.pagination import CursorPagination
from batchline.models.wire import WireModel

FilePurpose = Literal["batch", "batch_output", "batch_error"]


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


class ListFilesQuery(CursorPagination):
    """Which files to list."""

    purpose: FilePurpose | None = None
    search: str | None = Field(default=None, description="Part of the filename; case does not matter.")
    order: Literal["asc", "desc"] = Field(default="desc", description="`desc` is newest first.")
