"""Types of our flows' parameters, which decide how Prefect's pages show them.

The pages make a form of each parameter's JSON schema, and submit every field that nobody touched with its default.
So a default must be valid under its own schema: text that may be left out is empty, never null. A schema that
allows null as well would be valid, but the pages show no field for it. The description of a parameter stands in
the docstring of its flow, where Prefect reads it.
"""

from typing import Annotated, Final

from pydantic import AfterValidator, WithJsonSchema

from batchline.models.errors import InvalidInput
from batchline.models.settings import ENDPOINTS, load_settings

WINDOW_CHOICES: Final = ("1h", "3h", "6h", "12h", "24h", "2d", "3d", "7d")
"""What the form offers; batches that programs make before they start a run may have others."""


def _allowed_endpoints() -> list[str]:
    """Those that the settings allow where the form is made."""
    try:
        return list(load_settings().endpoints)
    except InvalidInput:  # said where the settings are needed
        return list(ENDPOINTS)


def _strip_text(text: str | None) -> str | None:
    """Return the text without the blanks and line ends that come along when it is pasted into a text area."""
    return text.strip() if text else text


Text = Annotated[str | None, AfterValidator(_strip_text), WithJsonSchema({"type": "string"})]
Endpoint = Annotated[str, WithJsonSchema({"type": "string", "enum": _allowed_endpoints()})]
Window = Annotated[str, WithJsonSchema({"type": "string", "enum": list(WINDOW_CHOICES)})]
Metadata = Annotated[
    dict[str, str] | None, WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}})
]
Names = Annotated[list[str] | None, WithJsonSchema({"type": "array", "items": {"type": "string"}})]

NO_METADATA: Final[dict[str, str]] = {}
NO_NAMES: Final[list[str]] = []
