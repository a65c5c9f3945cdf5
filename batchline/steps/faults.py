"""What is wrong with an input line, told closely; the slow and exact half of validation."""

from collections.abc import Iterator

import msgspec

from batchline.models.json_scan import MAX_DEPTH, NotJSONError, TooDeepError, has_twice, members
from batchline.models.settings import Settings
from batchline.steps.formats import is_windows_text, why_not_json
from batchline.steps.stretches import UTF8_BOM

MAX_CUSTOM_ID = 512
MAX_MODEL = 256
MAX_MODELS = 1_000
"""Different models of a file: each takes memory here, in the plan and in the figures, and a lane upstream."""

QUOTED = 60
REQUEST = ("custom_id", "method", "url", "body")
MODEL_IS_OPTIONAL = frozenset({"/v1/moderations"})


class Rules:
    """The rules for a batch's lines; `models` are those that the file has named so far."""

    def __init__(self, endpoint: str, settings: Settings) -> None:
        self.endpoint = endpoint
        self.max_line_bytes = settings.max_line_bytes
        self.models: set[str] = set()
        self._settings = settings

    def serves(self, model: str) -> bool:
        """Whether an upstream serves the model; any does where none is configured, which is told elsewhere."""
        return not self._settings.servers or self._settings.upstream_for(model) is not None


Fault = tuple[str, str, str | None]
"""Code, message and parameter of what is wrong; a record is made only of those that are kept."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a full check: the line's faults, and its custom_id and model if they are usable."""

    faults: list[Fault] = []
    custom_id: str | None = None
    model: str | None = None


def overlong(size: int, rules: Rules) -> Fault:
    """The fault of a line over the limit."""
    message = f"the line has {size:,} bytes; at most {rules.max_line_bytes:,} are allowed"
    return "request_too_large", message, None


def look_at(line: bytes, *, offset: int, rules: Rules) -> Look:
    """Everything that is wrong with the line that is not blank; `offset` is where it starts in the file.

    A line that is no JSON object has one fault; of one that is, every member's faults are told.
    """
    if len(line) > rules.max_line_bytes:
        return Look(faults=[overlong(len(line), rules)])
    try:
        found = _object(line, offset)
    except TooDeepError:
        return Look(faults=[("invalid_value", f"nested deeper than {MAX_DEPTH} levels; make it flatter", None)])
    except _Malformed as malformed:
        return Look(faults=[("invalid_json_line", str(malformed), None)])
    custom_id, model = _text(found.get("custom_id")), None
    body = _members(found.get("body"))
    if body is not None:
        model = _text(body.get("model"))
    faults = [*_faults(found, body, rules)]
    if line.count(b'"custom_id"') > 1 and has_twice(line, "custom_id"):
        words = "the line has custom_id twice, and readers differ in which one they take; leave one"
        faults.append(("invalid_value", words, "custom_id"))
    usable = custom_id is not None and 0 < len(custom_id) <= MAX_CUSTOM_ID
    return Look(faults=faults, custom_id=custom_id if usable else None, model=model)


class _Url(msgspec.Struct):
    url: str


_decode_url = msgspec.json.Decoder(_Url).decode


def endpoint_in(line: bytes) -> str | None:
    """Return the line's url if it is an object that the fast parser takes and that has one, else None."""
    try:
        return _decode_url(line).url
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Malformed(ValueError):
    pass


def _object(text: bytes, offset: int) -> dict[str, bytes]:
    """The members of the object that the line must be; raises `TooDeepError` or `_Malformed`."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        then = "save the file as UTF-8"
        if is_windows_text(text):
            then = "it looks like Windows-1252; save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
        raise _Malformed(
            f"invalid UTF-8 at byte {error.start} of the line (byte {offset + error.start} of the file); {then}"
        ) from error
    if text.startswith(UTF8_BOM):
        raise _Malformed(
            "the line starts with a byte-order mark, which only a file may (files joined by cat keep theirs); "
            "remove its three bytes"
        )
    if b"\0" in text:
        at = text.index(b"\0")
        raise _Malformed(f"a raw NUL at byte {at} of the line (byte {offset + at} of the file)")
    try:
        found = members(text, *REQUEST)
    except TooDeepError:
        raise
    except NotJSONError as error:
        raise _Malformed(f"not JSON: {why_not_json(text, error.offset)}") from error
    if not text.lstrip().startswith(b"{"):
        raise _Malformed(f"a JSON object is needed, this is {_kind(text.strip())}")
    return found


def _faults(found: dict[str, bytes], body: dict[str, bytes] | None, rules: Rules) -> Iterator[Fault]:
    """Code, message and parameter of each fault of a line that is an object."""
    for name in REQUEST:
        if name not in found:
            yield "missing_required_parameter", f"{name} is missing", name
        elif found[name] == b'""':
            yield "missing_required_parameter", f"{name} is empty", name
            del found[name]
    if "custom_id" in found and (fault := _custom_id_fault(found["custom_id"])):
        yield "invalid_value", fault, "custom_id"
    if "method" in found and _text(found["method"]) != "POST":
        yield "invalid_value", f"method is {_quoted(found['method'])}; batch requests are POST", "method"
    if "url" in found:
        yield from _url_faults(found["url"], rules)
    if body is not None:
        yield from _body_faults(body, rules)
    elif "body" in found:
        yield "invalid_value", f"body is {_kind(found['body'])}; it must be an object", "body"


def _custom_id_fault(value: bytes) -> str | None:
    text = _text(value)
    if text is None:
        return f"custom_id is {_kind(value)}; it must be a string"
    if len(text) > MAX_CUSTOM_ID:
        return f"custom_id has {len(text):,} characters; at most {MAX_CUSTOM_ID} are allowed"
    return None


def _url_faults(value: bytes, rules: Rules) -> Iterator[Fault]:
    url = _text(value)
    if url is None:
        yield "invalid_value", f"url is {_kind(value)}; it must be the endpoint {rules.endpoint}", "url"
    elif url != rules.endpoint:
        yield (
            "mismatched_url",
            f"url is {_quoted(value)}; this batch's endpoint is {rules.endpoint}, the only one it may call",
            "url",
        )


def _body_faults(body: dict[str, bytes], rules: Rules) -> Iterator[Fault]:
    if "model" not in body:
        if rules.endpoint not in MODEL_IS_OPTIONAL:
            yield "missing_required_parameter", "body.model is missing", "body.model"
    elif (model := _text(body["model"])) is None:
        yield "invalid_value", f"body.model is {_kind(body['model'])}; it must be a string", "body.model"
    elif not model:
        yield "missing_required_parameter", "body.model is empty", "body.model"
    elif len(model) > MAX_MODEL:
        message = f"body.model has {len(model):,} characters; at most {MAX_MODEL} are allowed"
        yield "invalid_value", message, "body.model"
    elif len(rules.models) >= MAX_MODELS and model not in rules.models:
        message = f"model {model[:QUOTED]!r} is one too many: a file may name at most {MAX_MODELS:,}; split it"
        yield "invalid_value", message, "body.model"
    elif not rules.serves(model):
        yield "unknown_model", f"no upstream serves model {model[:QUOTED]!r}", "body.model"
    stream = body.get("stream", b"false")
    if stream == b"true":
        yield "unsupported_parameter", "body.stream is true; a batch cannot stream, leave it out", "body.stream"
    elif stream not in {b"false", b"null"}:
        yield "invalid_value", f"body.stream is {_kind(stream)}; it must be false or left out", "body.stream"


def _members(value: bytes | None) -> dict[str, bytes] | None:
    return members(value, "model", "stream") if value is not None and value.startswith(b"{") else None


def _text(value: bytes | None) -> str | None:
    """The string that the JSON text is; none for another kind, or one with a lone surrogate."""
    if value is None or not value.startswith(b'"'):
        return None
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return None


def _kind(value: bytes) -> str:
    """What kind of JSON the text is, in words; a string that is no usable text is told apart."""
    if value.startswith(b'"') and _text(value) is None:
        return "a string with half of a surrogate pair, which no UTF-8 file can hold"
    kinds = {b"{": "an object", b"[": "an array", b'"': "a string", b"t": "true", b"f": "false", b"n": "null"}
    return kinds.get(value[:1], "a number")


def _quoted(value: bytes) -> str:
    text = _text(value)
    return _kind(value) if text is None else repr(text[:QUOTED])
