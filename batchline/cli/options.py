"""Arguments and options shared by several commands, and their parsing."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from batchline.models.batches import window_seconds
from batchline.models.errors import InvalidInput
from batchline.models.options import BatchOptions
from batchline.models.sync import AfterAction

BatchId = Annotated[str, Parameter(help="Id of the batch.")]
FileId = Annotated[str, Parameter(help="Id of the file.")]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
AllFlag = Annotated[bool, Parameter(name="--all", negative="", show_default=False, help="List all of them.")]
JsonFlag = Annotated[bool, Parameter(negative="", show_default=False, help="Print the result as JSON.")]
LocalFlag = Annotated[bool, Parameter(negative="", show_default=False, help="Run it now, without Prefect.")]
RunFlag = Annotated[
    bool, Parameter(name="--run", negative="", show_default=False, help="Run it now, as `batchline run` does.")
]
StandInFlag = Annotated[
    bool,
    Parameter(
        negative="",
        show_default=False,
        help="Run it now against a simulator on this machine, whose answers are made up.",
    ),
]
EndpointOption = Annotated[
    str | None,
    Parameter(help="The endpoint of all requests, such as /v1/embeddings; by default that of each file's first."),
]
WindowOption = Annotated[str, Parameter(help="Maximum duration of a batch, such as 90m, 24h or 7d.")]
MetadataOption = Annotated[
    dict[str, str] | None, Parameter(help="Up to 16 pairs for a batch, each as --metadata.KEY VALUE.")
]
BatchOptionFlags = Annotated[BatchOptions | None, Parameter(name="*")]
"""A flag for each option of a batch; None if none is given."""

WriteBackFlag = Annotated[
    bool,
    Parameter(negative="", show_default=False, help="Write results to the folder outbox next to the watched one."),
]
AfterOption = Annotated[
    AfterAction,
    Parameter(
        help="What to do with a file that has a batch: keep, move (to folder taken) or delete (an hour later)."
    ),
]
LimitOption = Annotated[int | None, Parameter(help="Maximum number, 1 to 100; 20 by default.")]


def parse_seconds(option: str, text: str | None) -> int | None:
    """Return the seconds in a duration such as 12h; raises `InvalidInput` that names the option."""
    if text is None:
        return None
    try:
        return window_seconds(text)
    except InvalidInput:
        raise InvalidInput(
            f"--{option} is {text!r}; write a number and m, h or d, such as '90m', '12h' or '30d'", param=option
        ) from None


def absolute_uri(location: str) -> str:
    """Return the location with an absolute path, for processes with another working directory."""
    return location if "://" in location else str(Path(location).absolute())
