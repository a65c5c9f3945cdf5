"""Routes below `/v1/files`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from batchline.api.concurrency import FairRoute
from batchline.api.content import MEDIA_TYPE, ContentQuery, content_response
from batchline.api.errors import openapi_errors
from batchline.api.responses import CurrentClient, Deleted, json_response, model_response, openapi_stream
from batchline.api.upload import MultipartForm, UploadHandler
from batchline.client.estimate import CostEstimate, estimate_file
from batchline.models.files import FileListResponse, FileObject, ListFilesQuery

router = APIRouter(prefix="/v1/files", tags=["Files"], route_class=FairRoute)

UPLOAD_FORM = {
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
                            "description": "JSON Lines, compressed if its name ends in .gz or .zst.",
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
RANGE_PARAMETER = {
    "name": "Range",
    "in": "header",
    "description": "The bytes to read, such as `bytes=0-1023` or `bytes=-500`.",
    "schema": {"type": "string"},
}
RANGE_HEADERS = {"Content-Range": "The range and the size of the file, or `*` while the file grows."}
LINE_HEADERS = {
    "X-Incomplete": "`true` while the batch runs and more lines follow, else `false`.",
    "X-Last-Line": "The number of the last line searched; use it as `skip` to continue.",
}


@router.post("", response_model=FileObject, responses=openapi_errors(), openapi_extra=UPLOAD_FORM)
async def create_file(request: Request, client: CurrentClient) -> Response:
    """Upload an input file."""
    uploads: UploadHandler = request.app.state.uploads
    return model_response(await uploads.handle(MultipartForm(request), request, client))


@router.get("", response_model=FileListResponse, responses=openapi_errors())
def list_files(query: Annotated[ListFilesQuery, Query()], client: CurrentClient) -> Response:
    """List files, newest first."""
    return json_response(client.files.list(**query.model_dump()).to_json())


@router.get("/{file_id}", response_model=FileObject, responses=openapi_errors())
def retrieve_file(file_id: str, client: CurrentClient) -> Response:
    """Return a file."""
    return model_response(client.files.retrieve(file_id))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={
        **openapi_errors(416),
        200: openapi_stream(MEDIA_TYPE, "The content, or the requested lines.", **LINE_HEADERS),
        206: openapi_stream(MEDIA_TYPE, "The bytes in `Range`.", **LINE_HEADERS, **RANGE_HEADERS),
    },
    openapi_extra={"parameters": [RANGE_PARAMETER]},
)
def read_file(
    request: Request, file_id: str, query: Annotated[ContentQuery, Query()], client: CurrentClient
) -> Response:
    """Read a file: whole, a range of bytes, or lines. For a running batch, the results settled so far."""
    return content_response(request, file_id, query, client)


@router.get("/{file_id}/cost-estimate", response_model=CostEstimate, responses=openapi_errors())
def estimate_cost(file_id: str, client: CurrentClient) -> Response:
    """Estimate the cost of the requests in an input file."""
    return model_response(estimate_file(client, file_id))


@router.delete("/{file_id}", response_model=Deleted, responses=openapi_errors(409))
def delete_file(file_id: str, client: CurrentClient) -> Response:
    """Delete a file."""
    client.files.delete(file_id)
    return model_response(Deleted(id=file_id, object="file"))
