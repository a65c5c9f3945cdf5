"""Replies whose framing or encoding is unusual or wrong, and connections that break, over all transports."""

import gzip
import zlib
from collections.abc import Callable, Iterator

import pytest
from helpers.dispatcher_calls import call_all, make_bodies
from helpers.scripted_server import ScriptedServer, cut_off, error_reply, raw, reply, sequence
from helpers.transport_calls import send_directly

from batchline.models.error_codes import ErrorCode
from batchline.models.upstreams import Upstream
from batchline.upstream.transports.asyncio_http import AsyncioHttpTransport
from batchline.upstream.transports.base import HttpReply, TransportFactory, TransportFailure
from batchline.upstream.transports.httpx import through_httpx
from batchline.upstream.transports.lenient_parser import LenientParser
from batchline.upstream.transports.pyreqwest import PyreqwestTransport

TRANSPORTS = {"asyncio": AsyncioHttpTransport, "pyreqwest": PyreqwestTransport, "httpx": through_httpx()}


@pytest.fixture(params=TRANSPORTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def transport(name: str) -> TransportFactory:
    return TRANSPORTS[name]


class Exchanges:
    """Sends requests to one server, which answers each with the bytes that it is given."""

    def __init__(self, open_transport: TransportFactory, serve: Callable[..., ScriptedServer]) -> None:
        self._open_transport = open_transport
        self._server = serve(lambda _: raw(b""))

    def __call__(
        self, reply_bytes: bytes, *, closes: bool = False, **options: object
    ) -> HttpReply | TransportFailure:
        self._server.script = lambda _: raw(reply_bytes, closes=closes)
        upstream = Upstream(base_url=self._server.base_url, total_timeout_s=5, **options)
        [outcome] = send_directly(self._open_transport, upstream, b"{}")
        return outcome


@pytest.fixture
def exchange(transport: TransportFactory, serve: Callable[..., ScriptedServer]) -> Iterator[Exchanges]:
    return Exchanges(transport, serve)


JSON = b'{"id": 1}'
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"content-length: 9\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"4\r\n" + JSON[:4] + b"\r\n5\r\n" + JSON[4:] + b"\r\n0\r\n\r\n"
BODY = b"\r\n" + JSON

LENIENT = {
    "length_before_chunked": OK + b"content-length: 3\r\n" + CHUNKED + b"\r\n" + CHUNKS,
    "length_after_chunked": OK + CHUNKED + b"content-length: 300\r\n\r\n" + CHUNKS,
    "huge_length_and_chunked": OK + CHUNKED + b"content-length: 99999999999\r\n\r\n" + CHUNKS,
    "same_length_twice": OK + LENGTH + b"x-other: 1\r\n" + LENGTH + BODY,
    "same_length_in_a_list": OK + b"content-length: 9, 9\r\n" + BODY,
    "coding_in_capitals": OK + b"Transfer-Encoding: Chunked\r\n\r\n" + CHUNKS,
    "chunked_twice": OK + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "identity_coding": OK + b"transfer-encoding: identity\r\n" + LENGTH + BODY,
    "spaces_after_chunk_size": OK + CHUNKED + b"\r\n9  \r\n" + JSON + b"\r\n0 \r\n\r\n",
    "zeros_before_chunk_size": OK + CHUNKED + b"\r\n00009\r\n" + JSON + b"\r\n000\r\n\r\n",
    "chunk_extensions": OK + CHUNKED + b"\r\n9;a=b\r\n" + JSON + b"\r\n0;c\r\n\r\n",
    "bare_line_feeds": b"HTTP/1.1 200 OK\ncontent-length: 9\n\n" + JSON,
    "line_feed_before_chunks": b"HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n" + CHUNKS,
    "some_bare_line_feeds": OK + b"x-other: 1\n" + LENGTH + b"\n" + JSON,
    "folded_header": OK + b"x-other: one\r\n\ttwo\r\n three\r\n" + LENGTH + BODY,
    "folded_length": OK + b"content-length:\r\n 9\r\n" + BODY,
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + BODY,
    "early_hints": b"HTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 E\r\nlink: </a>\r\n\r\n" + OK + LENGTH + BODY,
    "early_hints_then_line_feeds": b"HTTP/1.1 103 E\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\ncontent-length: 9\n\n"
    + JSON,
    "early_hints_with_line_feeds": b"HTTP/1.1 103 E\nlink: a\n\n" + OK + LENGTH + BODY,
    "trailers": OK
    + CHUNKED
    + b"x-request-id: r\r\n\r\n"
    + CHUNKS[:-2]
    + b"content-encoding: gzip\r\nx-request-id: t\r\nretry-after: 9\r\n\r\n",
    "length_as_trailer": OK + CHUNKED + b"\r\n" + CHUNKS[:-2] + b"content-length: 3\r\n\r\n",
    "coding_as_trailer": OK + CHUNKED + b"\r\n" + CHUNKS[:-2] + b"transfer-encoding: gzip\r\n\r\n",
    "no_reason": b"HTTP/1.1 200\r\n" + LENGTH + BODY,
    "reason_in_utf8": "HTTP/1.1 200 Добре\r\n".encode() + LENGTH + BODY,
    "version_1.2": b"HTTP/1.2 200 OK\r\n" + LENGTH + BODY,
    "version_2": b"HTTP/2 200 OK\r\n" + LENGTH + BODY,
    "version_in_small_letters": b"http/1.1 200 OK\r\n" + LENGTH + BODY,
    "blank_line_before_head": b"\r\n" + OK + LENGTH + BODY,
    "blank_lines_before_head": b"\r\n\r\n\n" + OK + LENGTH + BODY,
    "upgrade_offered": OK + b"upgrade: h2c\r\nconnection: upgrade\r\n" + LENGTH + BODY,
    "space_before_colon": OK + b"x-other : 1\r\ncontent-length : 9\r\n" + BODY,
    "space_in_name": OK + b"x other: 1\r\n" + LENGTH + BODY,
    "line_without_colon": OK + b"nonsense\r\n" + LENGTH + BODY,
    "header_without_name": OK + b": 1\r\n" + LENGTH + BODY,
    "name_in_utf8": OK + "x-é: 1\r\n".encode() + LENGTH + BODY,
    "value_in_utf8": OK + "x-request-id: é€\r\nx-other: é\r\n".encode() + LENGTH + BODY,
    "control_character": OK + b"x-other: a\x01b\r\n" + LENGTH + BODY,
    "zero_byte": OK + b"x-other: a\x00b\r\n" + LENGTH + BODY,
    "many_headers": OK + b"".join(b"x-%d: 1\r\n" % number for number in range(300)) + LENGTH + BODY,
    "long_header": OK + b"x-other: " + b"1" * 200_000 + b"\r\n" + LENGTH + BODY,
}
"""Replies with the body `JSON` that browsers or curl accept, on a connection that stays open."""

REFUSED = {
    "asyncio": set(),
    "pyreqwest": {"version_1.2", "version_2", "version_in_small_letters", "zero_byte", "many_headers"},
    "httpx": {
        "chunked_twice",
        "identity_coding",
        "coding_as_trailer",
        "version_2",
        "version_in_small_letters",
        "blank_line_before_head",
        "blank_lines_before_head",
        "space_before_colon",
        "space_in_name",
        "line_without_colon",
        "header_without_name",
        "name_in_utf8",
        "zero_byte",
        "long_header",
    },
}
"""Those of them that a transport's library refuses; docs/limits.md lists them."""

WRONG = {
    "different_lengths": OK + LENGTH + b"content-length: 8\r\n" + BODY,
    "different_lengths_in_a_list": OK + b"content-length: 9, 8\r\n" + BODY,
    "length_with_sign": OK + b"content-length: +9\r\n" + BODY,
    "length_in_words": OK + b"content-length: nine\r\n" + BODY,
    "empty_length": OK + b"content-length:\r\n" + BODY,
    "chunk_size_in_words": OK + CHUNKED + b"\r\nnine\r\n" + JSON + b"\r\n0\r\n\r\n",
    "chunk_longer_than_its_size": OK + CHUNKED + b"\r\n4\r\n" + JSON + b"\r\n0\r\n\r\n",
    "status_of_two_digits": b"HTTP/1.1 99 OK\r\n" + LENGTH + BODY,
    "no_status": b"HTTP/1.1 OK\r\n" + LENGTH + BODY,
    "other_protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}
"""Replies that cannot be read safely."""


def test_unusual_framing_is_accepted_as_by_browsers(name: str, exchange: Exchanges) -> None:
    for case, reply_bytes in LENIENT.items():
        outcome = exchange(reply_bytes)
        if case in REFUSED[name]:
            assert isinstance(outcome, TransportFailure), case
            assert "the answer breaks a rule of HTTP: " in outcome.message, case
        else:
            assert isinstance(outcome, HttpReply), (case, outcome)
            assert (outcome.status_code, outcome.body, outcome.headers) == (200, JSON, ()), case


def test_reply_that_cannot_be_read_safely_names_the_broken_rule(exchange: Exchanges) -> None:
    for case, reply_bytes in WRONG.items():
        failure = exchange(reply_bytes)
        assert isinstance(failure, TransportFailure), case
        assert (failure.code, failure.sent, failure.response_started) == ("connection_error", True, True), case
        assert failure.message.startswith("the connection broke: the answer breaks a rule of HTTP: "), case


RULES = {
    "different_lengths": "it has several values of Content-Length that differ",
    "length_in_words": "its Content-Length is not a number",
    "chunk_size_in_words": "the size of a chunk is not a hexadecimal number",
    "chunk_longer_than_its_size": "a chunk does not have the size that it says",
    "status_of_two_digits": "it does not start with HTTP/1.1 and a status",
}


def test_own_transport_names_the_broken_rule_in_plain_words(serve: Callable[..., ScriptedServer]) -> None:
    exchange = Exchanges(AsyncioHttpTransport, serve)
    for case, rule in RULES.items():
        assert exchange(WRONG[case]).message.endswith(f": {rule}"), case
    line_feed = exchange(OK + CHUNKED + b"\r\n9\n" + JSON + b"\n0\n\n")
    assert line_feed.message.endswith(": a line with the size of a chunk does not end with CR LF")
    switch = exchange(b"HTTP/1.1 101 S\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
    assert switch.message.endswith(": it switches to another protocol, which was not asked for")


def test_trailers_replace_no_header(exchange: Exchanges) -> None:
    assert exchange(LENIENT["trailers"]).request_id == "r"


def test_headers_of_an_odd_error_are_kept(exchange: Exchanges) -> None:
    head = (
        b"HTTP/1.1 429 Slow\nretry-after: 1\nRetry-After:\n 2\nx-ratelimit-reset-tokens: 3s\ncontent-length: 2\n\n"
    )

    error = exchange(head + b"{}")

    assert sorted(error.headers) == [
        ("retry-after", "1"),
        ("retry-after", "2"),
        ("x-ratelimit-reset-tokens", "3s"),
    ]


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def encoded(data: bytes, *encodings: bytes, status: int = 200) -> bytes:
    lines = [b"HTTP/1.1 %d Encoded" % status, b"content-length: %d" % len(data)]
    return b"\r\n".join([*lines, *(b"content-encoding: " + name for name in encodings), b"", data])


ZIPPED = gzip.compress(JSON)
LONG_JSON = b'["%b"]' % (b"abcdefgh" * 20_000)

ENCODED = {
    "gzip": encoded(ZIPPED, b"gzip"),
    "gzip_by_its_old_name": encoded(ZIPPED, b"x-gzip"),
    "gzip_in_capitals": encoded(ZIPPED, b"GZIP"),
    "gzip_in_chunks": OK
    + CHUNKED
    + b"content-encoding: gzip\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ZIPPED), ZIPPED),
    "two_members": encoded(gzip.compress(JSON[:4]) + gzip.compress(JSON[4:]), b"gzip"),
    "many_members": encoded(b"".join(gzip.compress(bytes([byte])) for byte in JSON) + gzip.compress(b""), b"gzip"),
    "padding": encoded(ZIPPED + b"\0" * 100, b"gzip"),
    "line_break_after_it": encoded(ZIPPED + b"\r\n", b"gzip"),
    "deflate": encoded(zlib.compress(JSON), b"deflate"),
    "raw_deflate": encoded(raw_deflate(JSON), b"deflate"),
    "twice": encoded(gzip.compress(zlib.compress(JSON)), b"deflate, gzip"),
    "twice_in_two_headers": encoded(gzip.compress(ZIPPED), b"gzip", b"gzip"),
    "identity": encoded(JSON, b"identity"),
    "identity_and_gzip": encoded(ZIPPED, b"identity, gzip"),
    "none": encoded(JSON, b"none"),
    "no_name": encoded(JSON, b""),
    "character_set": encoded(JSON, b"utf-8"),
}


def test_content_encodings_are_decoded(exchange: Exchanges) -> None:
    for case, reply_bytes in ENCODED.items():
        outcome = exchange(reply_bytes)
        assert isinstance(outcome, HttpReply), (case, outcome)
        assert outcome.body == JSON, case
    long_members = b"".join(gzip.compress(LONG_JSON[offset : offset + 999]) for offset in range(0, 160_004, 999))
    assert exchange(encoded(long_members, b"gzip")).body == LONG_JSON
    assert exchange(encoded(b"", b"gzip", status=204)).body == b""


CUT = {
    "gzip_without_its_end": encoded(gzip.compress(LONG_JSON)[:-9], b"gzip"),
    "gzip_without_its_length": encoded(ZIPPED[:-4], b"gzip"),
    "second_member": encoded(ZIPPED + gzip.compress(b" ")[:12], b"gzip"),
    "start_of_second_member": encoded(ZIPPED + b"\x1f", b"gzip"),
    "deflate": encoded(zlib.compress(JSON)[:-4], b"deflate"),
    "raw_deflate": encoded(raw_deflate(JSON)[:-2], b"deflate"),
}


def test_compressed_reply_that_is_cut_short_is_a_broken_connection(exchange: Exchanges) -> None:
    for case, reply_bytes in CUT.items():
        failure = exchange(reply_bytes)
        assert isinstance(failure, TransportFailure), case
        assert (failure.code, failure.response_started) == ("connection_error", True), case
        assert "the compressed answer ends too early" in failure.message, case


UNDECODABLE = {
    "unknown_encoding": encoded(b"\x1f\x9d\x90abc", b"compress"),
    "unknown_encoding_of_json": encoded(JSON, b"snappy"),
    "gzip_that_is_not_compressed": encoded(JSON, b"gzip"),
    "deflate_that_is_not_compressed": encoded(b"plain text", b"deflate"),
    "wrong_checksum": encoded(ZIPPED[:-8] + b"abcd" + ZIPPED[-4:], b"gzip"),
}


def test_reply_that_cannot_be_decoded_is_an_invalid_response(exchange: Exchanges) -> None:
    for case, reply_bytes in UNDECODABLE.items():
        failure = exchange(reply_bytes)
        assert isinstance(failure, TransportFailure), case
        assert (failure.code, failure.response_started) == ("invalid_response", True), case
        assert "Content-Encoding" in failure.message, case


def test_reply_that_cannot_be_decoded_or_is_too_long_is_not_retried(call_one: Callable) -> None:
    for script in (
        reply(200, b"\x1f\x9d\x90abc", headers=[("content-encoding", "compress")]),
        reply(200, b" " * 3_000),
    ):
        answer = call_one(lambda _, script=script: script, max_response_bytes=1_000)

        assert (answer.code, answer.attempts) == ("invalid_response", 1)


def test_error_keeps_its_status_if_its_body_cannot_be_read(exchange: Exchanges) -> None:
    undecodable = b"\x1f\x9d\x90abc"
    error = exchange(encoded(undecodable, b"compress", status=503))
    assert (error.status_code, error.body) == (503, undecodable)

    error = exchange(encoded(ZIPPED[:-9], b"gzip", status=503))
    assert (error.status_code, error.body) == (503, ZIPPED[:-9])


@pytest.mark.parametrize("status", [200, 503])
def test_error_keeps_its_status_if_its_body_is_too_long(status: int, exchange: Exchanges) -> None:
    head, body = b"HTTP/1.1 %d Long\r\n" % status, b" " * 3_000
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for reply_bytes in (
        head + b"content-length: 3000\r\n\r\n" + body,
        head + CHUNKED + b"\r\n" + chunks,
        encoded(gzip.compress(body), b"gzip", status=status),
    ):
        outcome = exchange(reply_bytes, max_response_bytes=1_000)
        if status == 200:
            assert outcome.code is ErrorCode.INVALID_RESPONSE
        else:
            assert outcome.status_code == 503
            assert len(outcome.body) <= 1_000


def test_body_up_to_the_end_of_the_connection_is_read(exchange: Exchanges) -> None:
    for head in (OK, b"HTTP/1.0 200 OK\n", OK + b"transfer-encoding: identity\r\n"):
        outcome = exchange(head + b"\r\n" + JSON, closes=True)
        if isinstance(outcome, HttpReply):
            assert outcome.body == JSON
        else:  # httpx knows no transfer coding but chunked
            assert (b"identity" in head, "breaks a rule of HTTP" in outcome.message) == (True, True)


# The parser by itself


class Events:
    """Collects what a parser reports of one reply."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.is_complete = False
        self._is_in_body = False

    def on_message_begin(self) -> None:
        pass

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_body:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._is_in_body = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_complete = True


def test_lenient_parser_accepts_every_reply_wherever_it_is_cut() -> None:
    for case, reply_bytes in LENIENT.items():
        cuts = range(len(reply_bytes)) if len(reply_bytes) < 1_000 else range(0, len(reply_bytes), 9_999)
        for cut in cuts:
            events = Events()
            parser = LenientParser(events)
            parser.feed_data(reply_bytes[:cut])
            parser.feed_data(reply_bytes[cut:])
            assert (events.is_complete, events.body) == (True, JSON), (case, cut)
            assert parser.get_status_code() == 200, (case, cut)


def test_lenient_parser_keeps_headers_and_joins_folded_lines() -> None:
    events = Events()
    LenientParser(events).feed_data(
        b"HTTP/1.1 200 OK\n A: lost\nB: 1\n\t2\r\nC : 3\n D\nbad name: 4\n 5\nB:6\x00\ncontent-length: 0\n\n"
    )

    assert events.headers == [(b"b", b"1 2"), (b"c", b"3 D"), (b"b", b"6"), (b"content-length", b"0")]


# Connections


def test_connection_is_reused_only_if_the_request_was_written_completely(
    serve: Callable, transport: TransportFactory
) -> None:
    server = serve(lambda _: error_reply(400), reads_bodies=False)
    upstream = Upstream(base_url=server.base_url, total_timeout_s=2)

    first, second = send_directly(transport, upstream, b" " * 30_000_000, b"{}")

    assert second.status_code == 400
    assert server.connections == len(server.received) == 2
    if isinstance(first, HttpReply):
        assert first.status_code == 400
    else:  # httpx reads no answer before it has sent the request
        assert (first.code, first.sent) == ("timeout", True)


def test_kept_connection_that_breaks_before_the_answer_costs_no_attempt(
    serve: Callable, make_dispatcher: Callable
) -> None:
    for broken in (raw(b""), raw(b"", reset=True)):
        server = serve(lambda request, broken=broken: broken if request.number % 2 else reply())

        answers = call_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(5))

        assert [(answer.code, answer.attempts, answer.retries) for answer in answers] == [(None, 1, ())] * 5
        assert (len(server.received), server.connections) == (9, 5)


def test_kept_connection_is_replaced_only_once(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(sequence(reply(), raw(b"")))

    first, second = call_all(make_dispatcher(server.base_url, max_in_flight=1, max_attempts=2), make_bodies(2))

    assert (first.code, first.attempts) == (None, 1)
    assert (second.code, second.attempts, second.retries) == ("connection_error", 2, ("connection_error",))
    assert len(server.received) == 1 + 3


def test_connection_that_breaks_within_the_answer_is_not_replaced(
    serve: Callable, make_dispatcher: Callable
) -> None:
    server = serve(sequence(reply(), cut_off(b"{"), reply()))

    _, second = call_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(2))

    assert (second.code, second.attempts, second.retries) == (None, 2, ("connection_error",))
    assert len(server.received) == 3


def test_request_may_have_been_seen_if_the_new_connection_is_refused(
    serve: Callable, transport: TransportFactory
) -> None:
    server = serve(lambda request: reply() if request.number == 0 else refuse())

    def refuse() -> object:
        async def act(_: object) -> bool:
            server.close_port()
            return False

        return act

    _, failure = send_directly(transport, Upstream(base_url=server.base_url), b"{}", b"{}")

    assert isinstance(failure, TransportFailure)
    assert (failure.code, failure.sent, failure.response_started) == ("connection_error", True, False)
    assert failure.message.startswith("no connection: ")
