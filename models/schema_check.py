"""Checks an answer against the JSON Schema that its request asked for.

Requests name a schema in several forms: OpenAI's `response_format` and `text.format`, vLLM's `guided_json` and
`structured_outputs`, llama.cpp's `response_format.schema`, TGI's `response_format.value`, Anthropic's forced tool
and `output_config.format`. Schemas without `$schema` are read as draft 2020-12. No reference is fetched.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import jsonschema_rs
import msgspec
from jsonschema_rs import FancyRegexOptions, ValidationErrorKind
from msgspec import Raw

from batchline.models.json_scan import NotJSONError, require_json

MAX_SCHEMA_BYTES: Final = 2**18
"""Size above which a schema is not checked: twice what OpenAI allows, and a bound for the cache."""

MAX_SCHEMAS: Final = 128
"""Number of compiled schemas that are kept; a batch rarely has more than a few."""

MAX_VIOLATION_CHARACTERS: Final = 300
MAX_BACKTRACKS: Final = 100_000
"""Steps of a regular expression, a few milliseconds; a pattern that needs more is not checked."""


class RequestedSchema(NamedTuple):
    """The schema that a request asks for, as JSON text; `tool` is set if it describes the input of that tool."""

    schema: bytes
    tool: str | None = None


class SchemaValidator(Protocol):
    """A compiled schema."""

    def is_valid(self, instance: Any) -> bool:
        """Return True if the instance fits the schema."""

    def iter_errors(self, instance: Any) -> Any:
        """Yield the violations."""


class _NamedSchema(msgspec.Struct, gc=False):
    schema: Raw = Raw()


class _Format(msgspec.Struct, gc=False):
    type: str | None = None
    json_schema: _NamedSchema | None = None
    schema: Raw = Raw()
    value: Raw = Raw()


class _TextOptions(msgspec.Struct, gc=False):
    format: _Format | None = None


class _StructuredOutputs(msgspec.Struct, gc=False):
    json: Raw = Raw()


class _ToolChoice(msgspec.Struct, gc=False):
    type: str | None = None
    name: str | None = None


class _Tool(msgspec.Struct, gc=False):
    name: str | None = None
    input_schema: Raw = Raw()


class _SchemaRequest(msgspec.Struct, gc=False):
    response_format: _Format | None = None
    text: _TextOptions | None = None
    guided_json: Raw = Raw()
    structured_outputs: _StructuredOutputs | None = None
    output_config: _TextOptions | None = None
    output_format: _Format | None = None


class _ToolRequest(msgspec.Struct, gc=False):
    tool_choice: _ToolChoice | None = None
    tools: list[_Tool] | None = None


_decode_request: Final = msgspec.json.Decoder(_SchemaRequest).decode
_decode_tool_request: Final = msgspec.json.Decoder(_ToolRequest).decode
_decode_json: Final = msgspec.json.Decoder().decode


def requested_schema(endpoint: str, request_body: bytes) -> RequestedSchema | None:
    """Return the schema that the request asks for; None if it asks for none in a known form."""
    if endpoint == "/v1/messages" and b"tool_choice" in request_body:
        forced = _forced_tool(request_body)
        if forced is not None:
            return forced
    # Each of the other forms has it in a member's name or in its type: most requests need no decoding.
    if b"json" not in request_body:
        return None
    try:
        request = _decode_request(request_body)
    except (msgspec.DecodeError, RecursionError):
        return None
    formats = (
        request.response_format,
        request.output_format,
        *(options.format for options in (request.text, request.output_config) if options is not None),
    )
    candidates = [schema for form in formats if form is not None for schema in _schemas_of(form)]
    candidates.append(request.guided_json)
    if request.structured_outputs is not None:
        candidates.append(request.structured_outputs.json)
    found = next((text for candidate in candidates if (text := _schema_text(candidate)) is not None), None)
    return None if found is None else RequestedSchema(found)


def is_checkable(schema: bytes) -> bool:
    """Return True if answers can be checked against the schema; False if it is wrong, remote or too long."""
    return compile_schema(schema) is not None


@lru_cache(maxsize=MAX_SCHEMAS)
def compile_schema(schema: bytes) -> SchemaValidator | None:
    """Return the compiled schema, or None if it cannot be checked."""
    if len(schema) > MAX_SCHEMA_BYTES:
        return None
    try:
        require_json(schema)
        # The format of a text is an annotation in the newer drafts, and OpenAI's servers do not enforce it either.
        return jsonschema_rs.validator_for(
            json.loads(schema),
            validate_formats=False,
            offline=True,
            pattern_options=FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS),
        )
    except (ValueError, RecursionError):
        return None


def find_text_violation(schema: bytes, text: str) -> str | None:
    """Return the first violation of the schema by a text; None if the text fits or cannot be checked."""
    validator = compile_schema(schema)
    if validator is None:
        return None
    try:
        value = _decode_json(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        # Rare: a text that is not JSON, or JSON with lone surrogates or numbers beyond a float.
        try:
            value = _decode_unusual(text)
        except ValueError:
            return _describe_no_json(text)
    return _find_violation(validator, value)


def find_value_violation(schema: bytes, value: object) -> str | None:
    """Return the first violation of the schema by a decoded value; None if it fits or cannot be checked."""
    validator = compile_schema(schema)
    return None if validator is None else _find_violation(validator, value)


def _find_violation(validator: SchemaValidator, value: object) -> str | None:
    try:
        if validator.is_valid(value):
            return None
        for error in validator.iter_errors(value):
            if not isinstance(error.kind, ValidationErrorKind.BacktrackLimitExceeded):
                return f"{_path(error.instance_path)}: {error.message}"[:MAX_VIOLATION_CHARACTERS]
    except UnicodeEncodeError:
        return "$: the answer has a lone surrogate, which is not text"
    except (ValueError, RecursionError):
        return "$: the answer is nested too deeply"
    return None


def _path(steps: Sequence[str | int]) -> str:
    """Return the place of a value in the answer: `$.items[0].price`."""
    names = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return f"${''.join(names)}"[: MAX_VIOLATION_CHARACTERS // 2]


def _describe_no_json(text: str) -> str:
    if text.lstrip().startswith("```"):
        return "$: the answer is in a code fence, not plain JSON"
    try:
        require_json(text.encode(errors="replace"))
    except NotJSONError as error:
        return f"$: the answer is not JSON (at byte {error.offset})"
    return "$: the answer is not JSON"


def _decode_unusual(text: str) -> object:
    """Decode JSON that msgspec rejects; raises `ValueError` if it is not JSON."""
    require_json(text.encode(errors="replace"))
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _forced_tool(request_body: bytes) -> RequestedSchema | None:
    """Return the input schema of the tool that a request of Anthropic's dialect must be answered with."""
    try:
        request = _decode_tool_request(request_body)
    except (msgspec.DecodeError, RecursionError):
        return None
    choice = request.tool_choice
    if choice is None or choice.type != "tool" or choice.name is None:
        return None
    schemas = [tool.input_schema for tool in request.tools or () if tool.name == choice.name]
    text = _schema_text(schemas[0]) if schemas else None
    return None if text is None else RequestedSchema(text, choice.name)


def _schemas_of(form: _Format) -> list[Raw]:
    nested = [form.json_schema.schema] if form.json_schema is not None else []
    return [*nested, form.schema, form.value]


def _schema_text(candidate: Raw) -> bytes | None:
    """Return the schema as JSON text; vLLM also takes it as JSON inside a string."""
    text = bytes(candidate)
    if text.startswith(b'"'):
        try:
            text = msgspec.json.decode(text, type=str).strip().encode()
        except (msgspec.DecodeError, UnicodeEncodeError):
            return None
    return text if text.startswith(b"{") else None
