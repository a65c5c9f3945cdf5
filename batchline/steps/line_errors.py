"""Finds every error of an input line: the slow and exact half of validation."""

from collections.abc import Iterator

import msgspec

from batchline.models.json_scan import MAX_DEPTH, NotJSONError, TooDeepError, has_duplicate_member, read_members
from batchline.models.settings import Settings
from batchline.steps.format_detection import explain_json_error, is_windows_text
from batchline.steps.line_blocks import UTF8_BOM

MAX_CUSTOM_ID_CHARS = 512
MAX_MODEL_CHARS = 256
MAX_MODELS = 1_000
"""Distinct models per file: each takes memory here, in the plan and in the metrics, and a pool upstream."""

MAX_QUOTED_CHARS = 60
REQUEST_FIELDS = ("custom_id", "method", "url", "body")
ENDPOINTS_WITHOUT_MODEL = frozenset({"/v1/moderations"})


class LineRules:
    """The rules for a batch's lines; `models` collects the models of its valid lines."""

    def __init__(self, endpoint: str, settings: Settings) -> None:
        self.endpoint = endpoint
        self.max_line_bytes = settings.max_line_bytes
        self.models: set[str] = set()
        self._settings = settings

    def is_served(self, model: str) -> bool:
        """Return True if an upstream serves the model, or if none is configured, which is reported elsewhere."""
        return not self._settings.all_upstreams or self._settings.upstream_for(model) is not None


LineError = tuple[str, str, str | None]
"""Code, message and parameter; a `BatchError` is built only for the errors that are kept."""


class LineCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a full check: the line's errors, and its custom_id and model if they are usable."""

    errors: list[LineError] = []
    custom_id: str | None = None
    model: str | None = None


def line_too_long(size: int, rules: LineRules) -> LineError:
    """Return the error of a line of `size` bytes, over the limit."""
    message = f"the line has {size:,} bytes; at most {rules.max_line_bytes:,} are allowed"
    return "request_too_large", message, None


def check_line(line: bytes, *, offset: int, rules: LineRules) -> LineCheck:
    """Check a non-blank line at byte `offset` of the file; one that is not an object has a single error."""
    if len(line) > rules.max_line_bytes:
        return LineCheck(errors=[line_too_long(len(line), rules)])
    try:
        fields = _parse_object(line, offset)
    except TooDeepError:
        return LineCheck(errors=[("invalid_value", f"nested deeper than {MAX_DEPTH} levels; flatten it", None)])
    except _MalformedLine as malformed:
        return LineCheck(errors=[("invalid_json_line", str(malformed), None)])
    custom_id = _decode_text(fields.get("custom_id"))
    body_json = fields.get("body", b"")
    body = read_members(body_json, "model", "stream") if body_json.startswith(b"{") else None
    model = None if body is None else _decode_text(body.get("model"))
    errors = [*_line_errors(fields, body, rules)]
    # The count is a fast filter, as the text may also occur in the body.
    if line.count(b'"custom_id"') > 1 and has_duplicate_member(line, "custom_id"):
        message = "the line has custom_id twice; remove one"
        errors.append(("invalid_value", message, "custom_id"))
    is_usable = custom_id is not None and 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS
    return LineCheck(errors=errors, custom_id=custom_id if is_usable else None, model=model)


class _UrlOnly(msgspec.Struct):
    url: str


_decode_url = msgspec.json.Decoder(_UrlOnly).decode


def parse_url(line: bytes) -> str | None:
    """Return the line's url, or None if it is not an object that msgspec decodes or has no url."""
    try:
        return _decode_url(line).url
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _MalformedLine(ValueError):
    pass


def _parse_object(text: bytes, offset: int) -> dict[str, bytes]:
    """Return the members of the line's object as JSON; raises `TooDeepError` or `_MalformedLine`."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        advice = "save the file as UTF-8"
        if is_windows_text(text):
            advice = "it looks like Windows-1252; save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
        raise _MalformedLine(
            f"invalid UTF-8 at byte {error.start} of the line (byte {offset + error.start} of the file); {advice}"
        ) from error
    if text.startswith(UTF8_BOM):
        raise _MalformedLine(
            "the line starts with a byte-order mark, which only a file may (files joined by cat keep theirs); "
            "remove its three bytes"
        )
    if b"\0" in text:
        position = text.index(b"\0")
        raise _MalformedLine(f"a raw NUL at byte {position} of the line (byte {offset + position} of the file)")
    try:
        fields = read_members(text, *REQUEST_FIELDS)
    except TooDeepError:
        raise
    except NotJSONError as error:
        raise _MalformedLine(f"not JSON: {explain_json_error(text, error.offset)}") from error
    if not text.lstrip().startswith(b"{"):
        raise _MalformedLine(f"expected a JSON object, got {_describe_kind(text.strip())}")
    return fields


def _line_errors(fields: dict[str, bytes], body: dict[str, bytes] | None, rules: LineRules) -> Iterator[LineError]:
    """Yield the errors of a line that is an object."""
    for name in REQUEST_FIELDS:
        if name not in fields:
            yield "missing_required_parameter", f"{name} is missing", name
        elif fields[name] == b'""':
            yield "missing_required_parameter", f"{name} is empty", name
            # So that the checks below do not report it a second time.
            del fields[name]
    yield from _text_errors(fields, rules)
    if body is not None:
        yield from _body_errors(body, rules)
    elif "body" in fields:
        yield "invalid_value", f"body is {_describe_kind(fields['body'])}; it must be an object", "body"


def _text_errors(fields: dict[str, bytes], rules: LineRules) -> Iterator[LineError]:
    """Yield the errors of custom_id, method and url."""
    custom_id, url = _decode_text(fields.get("custom_id")), _decode_text(fields.get("url"))
    if custom_id is None and "custom_id" in fields:
        message = f"custom_id is {_describe_kind(fields['custom_id'])}; it must be a string"
        yield "invalid_value", message, "custom_id"
    elif custom_id is not None and len(custom_id) > MAX_CUSTOM_ID_CHARS:
        message = f"custom_id has {len(custom_id):,} characters; at most {MAX_CUSTOM_ID_CHARS} are allowed"
        yield "invalid_value", message, "custom_id"
    if "method" in fields and (method := _decode_text(fields["method"])) != "POST":
        shown = _describe_kind(fields["method"]) if method is None else repr(method[:MAX_QUOTED_CHARS])
        yield "invalid_value", f"method is {shown}; batch requests are POST", "method"
    if url is None and "url" in fields:
        message = f"url is {_describe_kind(fields['url'])}; it must be the endpoint {rules.endpoint}"
        yield "invalid_value", message, "url"
    elif url is not None and url != rules.endpoint:
        message = f"url is {url[:MAX_QUOTED_CHARS]!r}; this batch's endpoint is {rules.endpoint}"
        yield "mismatched_url", f"{message}, the only one it may call", "url"


def _body_errors(body: dict[str, bytes], rules: LineRules) -> Iterator[LineError]:
    if "model" not in body:
        if rules.endpoint not in ENDPOINTS_WITHOUT_MODEL:
            yield "missing_required_parameter", "body.model is missing", "body.model"
    elif (model := _decode_text(body["model"])) is None:
        yield "invalid_value", f"body.model is {_describe_kind(body['model'])}; it must be a string", "body.model"
    elif not model:
        yield "missing_required_parameter", "body.model is empty", "body.model"
    elif len(model) > MAX_MODEL_CHARS:
        message = f"body.model has {len(model):,} characters; at most {MAX_MODEL_CHARS} are allowed"
        yield "invalid_value", message, "body.model"
    elif len(rules.models) >= MAX_MODELS and model not in rules.models:
        message = (
            f"model {model[:MAX_QUOTED_CHARS]!r} is one too many: a file may name at most {MAX_MODELS:,}; split it"
        )
        yield "invalid_value", message, "body.model"
    elif not rules.is_served(model):
        yield "unknown_model", f"no upstream serves model {model[:MAX_QUOTED_CHARS]!r}", "body.model"
    stream = body.get("stream", b"false")
    if stream == b"true":
        yield (
            "unsupported_parameter",
            "body.stream is true, but batches do not stream; leave it out",
            "body.stream",
        )
    elif stream not in {b"false", b"null"}:
        yield (
            "invalid_value",
            f"body.stream is {_describe_kind(stream)}; it must be false or left out",
            "body.stream",
        )


def _decode_text(value: bytes | None) -> str | None:
    """Return the decoded JSON string, or None for another type or a string with a lone surrogate."""
    if value is None or not value.startswith(b'"'):
        return None
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return None


def _describe_kind(value: bytes) -> str:
    """Return the JSON type of the text in words; an undecodable string has its own description."""
    if value.startswith(b'"') and _decode_text(value) is None:
        return "a string with half of a surrogate pair, which no UTF-8 file can hold"
    kinds = {b"{": "an object", b"[": "an array", b'"': "a string", b"t": "true", b"f": "false", b"n": "null"}
    return kinds.get(value[:1], "a number")
