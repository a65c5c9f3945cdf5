"""Base class of the objects that the API and the command line show."""

import json
from typing import Any, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticSerializationError

from batchline.models.lines import escape_line_separators


class WireModel(BaseModel):
    """A frozen model that leaves absent options out of its JSON instead of writing nulls."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_serializer(mode="wrap")
    def _omit_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def to_json(self) -> bytes:
        """Return the object as JSON on one line, with lone surrogates and Unicode line separators escaped."""
        try:
            text = self.model_dump_json().encode()
        except (PydanticSerializationError, ValueError):  # a lone surrogate, or nested deeper than pydantic allows
            text = dump_json_text(self.model_dump()).encode()
        return text if text.isascii() else escape_line_separators(text)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        """Return the schema of the fields, which the serializer's return type would hide."""
        fields = {key: value for key, value in core_schema.items() if key != "serialization"}
        return handler(cast("CoreSchema", fields))


def dump_json_text(value: object) -> str:
    """Return the value as JSON text with lone surrogates escaped."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
