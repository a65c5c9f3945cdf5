"""The parameters of our flows as people fill them in: Prefect's pages make a form of each one's JSON schema.

A parameter that may be left out is shown as plain text, since Prefect asks for the kind of a value that may be one
of several. What each is for stands in the flow's docstring, where Prefect takes it from.
"""

from typing import Annotated, Final

from pydantic import WithJsonSchema

from batchline.models.batches import metadata_of
from batchline.models.errors import InvalidInput
from batchline.models.settings import ENDPOINTS, load_settings

WINDOWS: Final = ("1h", "3h", "6h", "12h", "24h", "2d", "3d", "7d")
"""What the form offers; batches that programs make before they start a run may have others."""


def _endpoints() -> list[str]:
    """Those that the settings allow where the form is made."""
    try:
        return list(load_settings().endpoints)
    except InvalidInput:  # said where the settings are needed
        return list(ENDPOINTS)


Text = Annotated[str | None, WithJsonSchema({"type": "string"})]
Endpoint = Annotated[str, WithJsonSchema({"type": "string", "enum": _endpoints()})]
Window = Annotated[str, WithJsonSchema({"type": "string", "enum": list(WINDOWS)})]
Metadata = Annotated[str | dict[str, str] | None, WithJsonSchema({"type": "string"})]


def lines_of(text: str | None) -> list[str]:
    """The lines that are not blank, without what surrounds them."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def pairs_of(metadata: str | dict[str, str] | None) -> dict[str, str] | None:
    """The pairs in lines of `key=value`; raises `InvalidInput` that names a line that is none."""
    return metadata_of(metadata) or None if isinstance(metadata, str) else metadata
