"""Pagination parameters of lists: by cursor (batches, files) or by offset (results)."""

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100


class CursorPagination(BaseModel):
    """Cursor and size of a page of a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: str | None = Field(default=None, description="Id of the last object of the previous page.")
    limit: int = Field(default=DEFAULT_PAGE_SIZE, ge=1, le=MAX_PAGE_SIZE)


class Pagination(BaseModel):
    """Offset and size of a page of a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1, description="Maximum number of results; by default all.")
