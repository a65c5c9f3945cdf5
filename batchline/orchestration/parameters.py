"""Defines the types of the flows' parameters, which determine the forms on Prefect's pages.

The forms are made from the JSON schemas, and submit each untouched field with its default. So a default must be
valid under its own schema: optional text defaults to an empty string, never null. A schema that also allows null
would be valid, but the pages show no field for it. Prefect reads descriptions of parameters from the docstring of
their flow.
"""

from typing import Annotated, Final

from pydantic import AfterValidator, WithJsonSchema

from batchline.models.errors import InvalidInput
from batchline.models.options import BatchOptions
from batchline.models.settings import ENDPOINTS, load_settings

WINDOW_CHOICES: Final = ("1h", "3h", "6h", "12h", "24h", "2d", "3d", "7d")
"""Choices in the form; batches created by other means may have other windows."""


def _allowed_endpoints() -> list[str]:
    """Return the endpoints that the settings allow on the machine that registers the flow."""
    try:
        return list(load_settings().endpoints)
    except InvalidInput:  # importing must not fail; the flow reports it when it loads the settings
        return list(ENDPOINTS)


def _drop_defaults(options: BatchOptions | None) -> BatchOptions:
    """Return the options that differ from the defaults: a form submits every option, also the untouched ones."""
    given = options.given() if options else {}
    defaults = BatchOptions().model_dump(mode="json")
    return BatchOptions.model_validate({name: value for name, value in given.items() if value != defaults[name]})


# Text that is pasted into a form often has white space around it.
Text = Annotated[
    str | None, AfterValidator(lambda text: text and text.strip()), WithJsonSchema({"type": "string"})
]
Endpoint = Annotated[str, WithJsonSchema({"type": "string", "enum": _allowed_endpoints()})]
Window = Annotated[str, WithJsonSchema({"type": "string", "enum": list(WINDOW_CHOICES)})]
Metadata = Annotated[
    dict[str, str] | None, WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}})
]
Options = Annotated[
    BatchOptions | None, AfterValidator(_drop_defaults), WithJsonSchema(BatchOptions.model_json_schema())
]
Names = Annotated[list[str] | None, WithJsonSchema({"type": "array", "items": {"type": "string"}})]

NO_METADATA: Final[dict[str, str]] = {}
NO_OPTIONS: Final = BatchOptions()
NO_NAMES: Final[list[str]] = []
