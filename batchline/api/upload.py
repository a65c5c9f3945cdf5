"""Store a file from a multipart form while it arrives, without buffering it in memory or on disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import ClientDisconnect, Request

from batchline.api.concurrency import FairLimiter
from batchline.api.errors import ApiError
from batchline.client import Batchline
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
        self._file_blocks: list[bytes] = []
        self._field_name = ""
        self._partial_header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        callbacks = {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": lambda data, start, end: self._add_data(data[start:end]),
        }
        content_type, options = parse_options_header(request.headers.get("content-type", ""))
        if content_type != b"multipart/form-data" or not options.get(b"boundary"):
            raise ApiError(400, "send the file as multipart/form-data, with a boundary", param="file")
        with _translate_parser_errors():
            self._parser = MultipartParser(options[b"boundary"], callbacks, max_header_size=MAX_HEADER_BYTES)  # type: ignore[arg-type]

    @property
    def is_complete(self) -> bool:
        """True once the form's end has been parsed."""
        return self._parser.state is MultipartState.END

    def feed(self, data: bytes) -> list[bytes]:
        """Parse data and return the file's bytes in it; raises `ApiError` for an invalid form."""
        with _translate_parser_errors():
            self._parser.write(data)
        blocks, self._file_blocks = self._file_blocks, []
        return blocks

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

    def upload_options(self) -> UploadOptions:
        """Return the options of the upload; raises `InvalidInput`."""
        if "purpose" not in self.fields:
            raise InvalidInput("purpose is missing; send 'batch'", param="purpose")
        purpose = self.fields["purpose"].decode(errors="replace")
        anchor, seconds = (self.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
        if anchor is None and seconds is None:
            return UploadOptions(purpose)
        if seconds is None or not seconds.isdigit() or len(seconds) > 12:
            raise InvalidInput("expires_after[seconds] is not a whole number", param="expires_after[seconds]")
        if anchor not in {None, b"created_at"}:
            raise InvalidInput("expires_after[anchor] is not 'created_at'", param="expires_after[anchor]")
        return UploadOptions(purpose, {"anchor": "created_at", "seconds": int(seconds)})


@contextmanager
def _translate_parser_errors() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise ApiError(400, f"the form cannot be read: {error}") from error


class _FormFile:
    """The file of a form, read by one thread while the event loop receives the request."""

    def __init__(self, form: MultipartForm, blocks: list[bytes], stream: AsyncIterator[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        self._form = form
        self._blocks = deque(memoryview(block) for block in blocks)
        self._stream = stream
        self._receiving: Future[list[bytes]] | None = None
        self._is_closed = False

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes as soon as some have arrived; empty at the end of the form."""
        while not self._blocks:
            if self._is_closed:
                raise ClientDisconnect
            self._receiving = asyncio.run_coroutine_threadsafe(self._receive_blocks(), self._loop)
            self._blocks.extend(memoryview(block) for block in self._receiving.result())
            if not self._blocks:
                return b""
        block = self._blocks.popleft()
        if len(block) > size:
            self._blocks.appendleft(block[size:])
        return bytes(block[:size])

    async def _receive_blocks(self) -> list[bytes]:
        """Return the next bytes of the file; none at the end of the form."""
        async for data in self._stream:
            if blocks := self._form.feed(data):
                return blocks
        if not self._form.is_complete:
            raise ApiError(400, "the form is cut short; send it again")
        return []

    def close(self) -> None:
        """Make `read` fail, on the thread that waits in it."""
        self._is_closed = True
        if self._receiving is not None:
            self._receiving.cancel()


class UploadHandler:
    """Stores uploads, each on its own thread, with limits in total and per member."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_UPLOADS, thread_name_prefix="upload")
        self._limiter = FairLimiter(MAX_UPLOADS, MAX_UPLOADS_PER_MEMBER)

    async def handle(self, form: MultipartForm, request: Request, client: Batchline) -> FileObject:
        """Store the file of the request's form; if the client disconnects, nothing is stored."""
        message = "too many files are being uploaded; try again"
        async with self._limiter.slot_within(client.access.member_id, SLOT_TIMEOUT_S, message):
            stream = request.stream()
            try:
                async for data in stream:
                    blocks = form.feed(data)
                    if form.filename is not None:
                        return await self._store_file(form, blocks, stream, client)
            except ClientDisconnect:
                raise ApiError(400, "the client has disconnected") from None
        raise ApiError(400, "file is missing; send one", param="file", code="missing_required_parameter")

    async def _store_file(
        self, form: MultipartForm, blocks: list[bytes], stream: AsyncIterator[bytes], client: Batchline
    ) -> FileObject:
        """Store the file that begins with these blocks."""
        file = _FormFile(form, blocks, stream)
        name, create = form.filename or "", client.files.create_streaming
        store = partial(create, file, filename=name, options=form.upload_options)
        storing = asyncio.get_running_loop().run_in_executor(self._threads, store)
        try:
            return await asyncio.shield(storing)
        except asyncio.CancelledError:
            file.close()
            # Until the thread has cleaned up: the slot must not be free before its memory is.
            await asyncio.wait([storing])
            storing.exception()  # retrieved, or asyncio logs it as never retrieved
            raise
