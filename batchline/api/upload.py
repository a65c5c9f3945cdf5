"""A file that comes in as a form, stored while it comes: nothing is kept in memory or on the side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from batchline.api.errors import Refusal, unavailable
from batchline.api.pipe import Pipe
from batchline.api.places import Places
from batchline.models.errors import InvalidInput
from batchline.models.files import FileObject
from batchline.operations import Batchline
from batchline.operations.expiry import Expiry
from batchline.operations.files import UploadOptions

MOST_AT_ONCE: Final = 64
MOST_OF_A_MEMBER: Final = 8
"""Each holds some 40 MB: what it decompresses, and what it sends to S3."""

PLACE_S: Final = 20.0
"""How long an upload waits for one of the places; many small ones that come together then all have theirs."""

FIELD_BYTES: Final = 1_024
HEADER_BYTES: Final = 8_192
FIELDS: Final = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


class Form:
    """The form of a request as it is parsed: small fields, and the bytes of one file.

    It has the API's fields and those that are named beside them. Raises `Refusal` where the request has no form.
    """

    def __init__(self, request: Request, *, beside: frozenset[str] = frozenset()) -> None:
        self._known = FIELDS | beside
        self.fields: dict[str, bytes] = {}
        self.filename: str | None = None
        self.is_whole = False
        self._file: list[bytes] = []
        self._name = ""
        self._header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._add(data[start:end]),
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(_boundary(request), callbacks, max_header_size=HEADER_BYTES)  # type: ignore[arg-type]
        except FormParserError as error:
            raise Refusal(400, f"the form cannot be read: {error}") from error

    def feed(self, data: bytes) -> list[bytes]:
        """Parse what came, and return what of it is the file's; raises `Refusal` for what is no form."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Refusal(400, f"the form cannot be read: {error}") from error
        blocks, self._file = self._file, []
        return blocks

    def _begin(self) -> None:
        self._headers = {}

    def _add_header(self, part: int, data: bytes) -> None:
        self._header[part] += data

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = [b"", b""]

    def _open(self) -> None:
        """Look at whose data follow."""
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == "file":
            if self.filename is not None:
                raise Refusal(400, "there are two files; send one", param="file")
            self.filename = options.get(b"filename", b"").decode(errors="replace").replace("\0", "")
        elif self._name not in self._known:
            known = ", ".join(["file", *sorted(self._known, reverse=True)])
            message = f"Unknown parameter: '{self._name}'; the form may have {known}"
            raise Refusal(400, message, param=self._name, code="unknown_parameter")
        else:
            self.fields[self._name] = b""

    def _add(self, data: bytes) -> None:
        if self._name == "file":
            self._file.append(data)
            return
        self.fields[self._name] += data
        if len(self.fields[self._name]) > FIELD_BYTES:
            raise Refusal(400, f"{self._name} is longer than {FIELD_BYTES} bytes", param=self._name)

    def _end(self) -> None:
        self.is_whole = True

    def options(self) -> UploadOptions:
        """What the form says of the file; raises `InvalidInput`."""
        if "purpose" not in self.fields:
            raise InvalidInput("purpose is missing; send 'batch'", param="purpose")
        return UploadOptions(self.fields["purpose"].decode(errors="replace"), self._expiry())

    def _expiry(self) -> Expiry | None:
        anchor, seconds = (self.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
        if anchor is None and seconds is None:
            return None
        if seconds is None or not seconds.isdigit() or len(seconds) > 12:
            raise InvalidInput("expires_after[seconds] is no whole number", param="expires_after[seconds]")
        if anchor not in {None, b"created_at"}:
            raise InvalidInput("expires_after[anchor] is not 'created_at'", param="expires_after[anchor]")
        return {"anchor": "created_at", "seconds": int(seconds)}


class Uploads:
    """Stores uploads, so many at once and of one member, each by a thread of its own."""

    def __init__(self, most_at_once: int = MOST_AT_ONCE, most_of_a_member: int = MOST_OF_A_MEMBER) -> None:
        self._threads = ThreadPoolExecutor(most_at_once, thread_name_prefix="upload")
        self._places = Places(most_at_once, most_of_a_member)

    async def receive(self, request: Request, client: Batchline) -> FileObject:
        """Store the file of the request's form; where the client leaves, nothing stays behind."""
        return await self.receive_form(Form(request), request, client)

    async def receive_form(self, form: Form, request: Request, client: Batchline) -> FileObject:
        """The same, where the form's other fields are wanted as well."""
        async with self._place(client.access.member_id):
            try:
                return await self._received(form, request.stream(), client)
            except ClientDisconnect:
                raise Refusal(400, "the client has left") from None

    @asynccontextmanager
    async def _place(self, member: str | None) -> AsyncIterator[None]:
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(PLACE_S):
                    await held.enter_async_context(self._places.place(member))
            except TimeoutError:
                raise unavailable("too many files are being uploaded; try again") from None
            yield

    async def _received(self, form: Form, pieces: AsyncIterator[bytes], client: Batchline) -> FileObject:
        async for data in pieces:
            blocks = form.feed(data)
            if form.filename is not None:
                return await self._stored(form, blocks, pieces, client)
        raise Refusal(400, "file is missing; send one", param="file", code="missing_required_parameter")

    async def _stored(
        self, form: Form, blocks: list[bytes], pieces: AsyncIterator[bytes], client: Batchline
    ) -> FileObject:
        """Store the file that begins with these blocks."""
        pipe = Pipe()
        storing = asyncio.get_running_loop().run_in_executor(self._threads, _store, pipe, form, client)
        try:
            await _pass_on(form, blocks, pieces, pipe)
        except BaseException as error:
            pipe.end(error)
            await asyncio.wait([storing])
            storing.exception()
            raise
        pipe.end()
        return await storing


def _store(pipe: Pipe, form: Form, client: Batchline) -> FileObject:
    try:
        return client.files.receive(pipe, filename=form.filename or "", options=form.options)
    finally:
        pipe.leave()


async def _pass_on(form: Form, blocks: list[bytes], pieces: AsyncIterator[bytes], pipe: Pipe) -> None:
    """Hand the file's bytes over until the form is through, or nobody wants them any more."""
    for block in blocks:
        await pipe.put(block)
    async for data in pieces:
        for block in form.feed(data):
            await pipe.put(block)
        if pipe.is_left:
            return
    if not form.is_whole:
        raise Refusal(400, "the form is cut short; send it again")


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(400, "send the file as multipart/form-data, with a boundary", param="file")
    return options[b"boundary"]
