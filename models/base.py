"""The base of every object that people and APIs see."""

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
        """Return its JSON, which is one line to every reader.

        Lone surrogates in bodies and line separators of Unicode are escaped.
        """
        try:
            text = self.model_dump_json().encode()
        except (PydanticSerializationError, ValueError):  # a lone surrogate, or deeper than pydantic goes
            text = dump_json_text(self.model_dump()).encode()
        return text if text.isascii() else escape_line_separators(text)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        """Describe the fields, which the serializer's return type would hide."""
        fields = {key: value for key, value in core_schema.items() if key != "serialization"}
        return handler(cast("CoreSchema", fields))


def dump_json_text(value: object) -> str:
    """The JSON text of a value; lone surrogates are escaped."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
