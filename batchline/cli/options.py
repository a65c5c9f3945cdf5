"""Options that several commands have, and how their words are read."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from batchline.models.batches import window_seconds
from batchline.models.errors import InvalidInput

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def seconds(option: str, length: str | None) -> int | None:
    """Seconds in a length of time such as 12h; raises `InvalidInput` that names the option."""
    if length is None:
        return None
    try:
        return window_seconds(length)
    except InvalidInput:
        raise InvalidInput(
            f"--{option} is {length!r}; write a number and m, h or d, such as '90m', '12h' or '30d'", param=option
        ) from None


def address(place: str) -> str:
    """The place as other processes find it: a path is made absolute."""
    return place if "://" in place else str(Path(place).absolute())
