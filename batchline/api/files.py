"""`/v1/files`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from batchline.api.answers import Deleted, Here, json_answer, streamed_as, written
from batchline.api.content import MEDIA_TYPE, ContentQuery, content_of
from batchline.api.errors import documented
from batchline.api.places import FairRoute
from batchline.api.upload import Uploads
from batchline.models.files import FileListResponse, FileObject, ListFilesQuery
from batchline.operations.estimate import CostEstimate, estimate_stored

router = APIRouter(prefix="/v1/files", tags=["Files"], route_class=FairRoute)

FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "JSON Lines; with a name in .gz or .zst, compressed.",
                        },
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 1, "maximum": 999_999_999_999},
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
}
ASKED_RANGE = {
    "name": "Range",
    "in": "header",
    "description": "The bytes to read, such as `bytes=0-1023` or `bytes=-500`.",
    "schema": {"type": "string"},
}
RANGE = {"Content-Range": "Which bytes these are, and of how many, or of `*` while the file grows."}
PROGRESS = {
    "X-Incomplete": "`true` while the batch runs and more lines follow, else `false`.",
    "X-Last-Line": "The number of the last line that was looked at; `skip` by it to go on.",
}


@router.post("", response_model=FileObject, responses=documented(), openapi_extra=FORM)
async def create_file(request: Request, client: Here) -> Response:
    """Upload an input file."""
    uploads: Uploads = request.app.state.uploads
    return written(await uploads.receive(request, client))


@router.get("", response_model=FileListResponse, responses=documented())
def list_files(query: Annotated[ListFilesQuery, Query()], client: Here) -> Response:
    """List files, newest first."""
    return json_answer(client.files.list(**query.model_dump()).to_json())


@router.get("/{file_id}", response_model=FileObject, responses=documented())
def retrieve_file(file_id: str, client: Here) -> Response:
    """Tell about a file."""
    return written(client.files.retrieve(file_id))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={
        **documented(416),
        200: streamed_as(MEDIA_TYPE, "The content, or the lines that are asked for.", **PROGRESS),
        206: streamed_as(MEDIA_TYPE, "The bytes that `Range` asks for.", **PROGRESS, **RANGE),
    },
    openapi_extra={"parameters": [ASKED_RANGE]},
)
def read_file(request: Request, file_id: str, query: Annotated[ContentQuery, Query()], client: Here) -> Response:
    """Read a file: whole, a range of bytes, or lines. Of a running batch's files, what is settled so far."""
    return content_of(request, file_id, query, client)


@router.get("/{file_id}/cost-estimate", response_model=CostEstimate, responses=documented())
def estimate_cost(file_id: str, client: Here) -> Response:
    """Estimate what the requests of an input file will cost."""
    return written(estimate_stored(client, file_id))


@router.delete("/{file_id}", response_model=Deleted, responses=documented(409))
def delete_file(file_id: str, client: Here) -> Response:
    """Delete a file."""
    client.files.delete(file_id)
    return written(Deleted(id=file_id, object="file"))
