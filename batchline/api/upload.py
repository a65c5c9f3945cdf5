"""Store a file from a multipart form while it arrives, without buffering it in memory or on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from batchline.api.concurrency import FairLimiter
from batchline.api.errors import ApiError, service_unavailable
from batchline.api.upload_buffer import BoundedBuffer
from batchline.client import Batchline
from batchline.client.expiry import ExpiresAfterDict
from batchline.client.files import UploadOptions
from batchline.models.errors import InvalidInput
from batchline.models.files import FileObject

MAX_UPLOADS: Final = 64
MAX_UPLOADS_PER_MEMBER: Final = 8
"""Each upload holds about 40 MB: its decompressor, and parts being sent to S3."""

SLOT_TIMEOUT_S: Final = 20.0
"""Seconds that an upload waits for a slot, enough for many small uploads at once."""

MAX_FIELD_BYTES: Final = 1_024
MAX_HEADER_BYTES: Final = 8_192
FORM_FIELDS: Final = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


class MultipartForm:
    """A multipart form parsed incrementally: small fields, and the bytes of one file.

    Accepts the API's fields and `extra_fields`. Raises `ApiError` if the request is not such a form.
    """

    def __init__(self, request: Request, *, extra_fields: frozenset[str] = frozenset()) -> None:
        self._allowed_fields = FORM_FIELDS | extra_fields
        self.fields: dict[str, bytes] = {}
        self.filename: str | None = None
        self.is_complete = False
        self._file_blocks: list[bytes] = []
        self._field_name = ""
        self._partial_header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": lambda data, start, end: self._add_data(data[start:end]),
            "on_end": self._mark_complete,
        }
        try:
            self._parser = MultipartParser(_parse_boundary(request), callbacks, max_header_size=MAX_HEADER_BYTES)  # type: ignore[arg-type]
        except FormParserError as error:
            raise ApiError(400, f"the form cannot be read: {error}") from error

    def feed(self, data: bytes) -> list[bytes]:
        """Parse data and return the file's bytes in it; raises `ApiError` for an invalid form."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise ApiError(400, f"the form cannot be read: {error}") from error
        blocks, self._file_blocks = self._file_blocks, []
        return blocks

    def _begin_part(self) -> None:
        self._headers = {}

    def _add_header(self, index: int, data: bytes) -> None:
        self._partial_header[index] += data

    def _end_header(self) -> None:
        name, value = self._partial_header
        self._headers[name.lower()] = value
        self._partial_header = [b"", b""]

    def _begin_data(self) -> None:
        """Determine the field that the following data belong to."""
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field_name = options.get(b"name", b"").decode(errors="replace")
        if self._field_name == "file":
            if self.filename is not None:
                raise ApiError(400, "there are two files; send one", param="file")
            self.filename = options.get(b"filename", b"").decode(errors="replace").replace("\0", "")
        elif self._field_name not in self._allowed_fields:
            allowed = ", ".join(["file", *sorted(self._allowed_fields, reverse=True)])
            message = f"Unknown parameter: '{self._field_name}'; the form may have {allowed}"
            raise ApiError(400, message, param=self._field_name, code="unknown_parameter")
        else:
            self.fields[self._field_name] = b""

    def _add_data(self, data: bytes) -> None:
        if self._field_name == "file":
            self._file_blocks.append(data)
            return
        self.fields[self._field_name] += data
        if len(self.fields[self._field_name]) > MAX_FIELD_BYTES:
            raise ApiError(
                400, f"{self._field_name} is longer than {MAX_FIELD_BYTES} bytes", param=self._field_name
            )

    def _mark_complete(self) -> None:
        self.is_complete = True

    def upload_options(self) -> UploadOptions:
        """Return the options of the upload; raises `InvalidInput`."""
        if "purpose" not in self.fields:
            raise InvalidInput("purpose is missing; send 'batch'", param="purpose")
        return UploadOptions(self.fields["purpose"].decode(errors="replace"), self._parse_expiry())

    def _parse_expiry(self) -> ExpiresAfterDict | None:
        anchor, seconds = (self.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
        if anchor is None and seconds is None:
            return None
        if seconds is None or not seconds.isdigit() or len(seconds) > 12:
            raise InvalidInput("expires_after[seconds] is no whole number", param="expires_after[seconds]")
        if anchor not in {None, b"created_at"}:
            raise InvalidInput("expires_after[anchor] is not 'created_at'", param="expires_after[anchor]")
        return {"anchor": "created_at", "seconds": int(seconds)}


class UploadHandler:
    """Stores uploads, each on its own thread, with limits in total and per member."""

    def __init__(self, max_uploads: int = MAX_UPLOADS, max_per_member: int = MAX_UPLOADS_PER_MEMBER) -> None:
        self._threads = ThreadPoolExecutor(max_uploads, thread_name_prefix="upload")
        self._limiter = FairLimiter(max_uploads, max_per_member)

    async def handle(self, request: Request, client: Batchline) -> FileObject:
        """Store the file of the request's form; if the client disconnects, nothing is stored."""
        return await self.handle_form(MultipartForm(request), request, client)

    async def handle_form(self, form: MultipartForm, request: Request, client: Batchline) -> FileObject:
        """Store the file of a form whose other fields the caller reads too."""
        async with self._upload_slot(client.access.member_id):
            try:
                return await self._read_form(form, request.stream(), client)
            except ClientDisconnect:
                raise ApiError(400, "the client has left") from None

    @asynccontextmanager
    async def _upload_slot(self, member_id: str | None) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(SLOT_TIMEOUT_S):
                    await stack.enter_async_context(self._limiter.slot(member_id))
            except TimeoutError:
                raise service_unavailable("too many files are being uploaded; try again") from None
            yield

    async def _read_form(self, form: MultipartForm, stream: AsyncIterator[bytes], client: Batchline) -> FileObject:
        async for data in stream:
            blocks = form.feed(data)
            if form.filename is not None:
                return await self._store_file(form, blocks, stream, client)
        raise ApiError(400, "file is missing; send one", param="file", code="missing_required_parameter")

    async def _store_file(
        self, form: MultipartForm, blocks: list[bytes], stream: AsyncIterator[bytes], client: Batchline
    ) -> FileObject:
        """Store the file that begins with these blocks."""
        buffer = BoundedBuffer()
        storing = asyncio.get_running_loop().run_in_executor(
            self._threads, _store_from_buffer, buffer, form, client
        )
        try:
            await _forward_stream(form, blocks, stream, buffer)
        except BaseException as error:
            buffer.end(error)
            # Until the thread has cleaned up: the slot must not be free before its memory is.
            await asyncio.wait([storing])
            storing.exception()  # retrieved, or asyncio logs it as never retrieved
            raise
        buffer.end()
        return await storing


def _store_from_buffer(buffer: BoundedBuffer, form: MultipartForm, client: Batchline) -> FileObject:
    try:
        return client.files.create_streaming(buffer, filename=form.filename or "", options=form.upload_options)
    finally:
        buffer.abandon()


async def _forward_stream(
    form: MultipartForm, blocks: list[bytes], stream: AsyncIterator[bytes], buffer: BoundedBuffer
) -> None:
    """Forward the file's bytes until the form ends or the reader abandons the buffer."""
    for block in blocks:
        await buffer.put(block)
    async for data in stream:
        for block in form.feed(data):
            await buffer.put(block)
        if buffer.is_abandoned:
            return
    if not form.is_complete:
        raise ApiError(400, "the form is cut short; send it again")


def _parse_boundary(request: Request) -> bytes:
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(400, "send the file as multipart/form-data, with a boundary", param="file")
    return options[b"boundary"]
