"""`batchline batches download`: a batch's files, to a folder."""

import shutil
import uuid
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from batchline.cli.console import messages, results
from batchline.models.errors import Conflict, InvalidInput
from batchline.operations import Batchline

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def download(batch_id: str, /, *, to: Path = Path(), force: Flag = False) -> None:
    """Copy a finished batch's files to a folder: output, errors, figures and report, as far as there are.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    to:
        The folder, made where it is missing; by default the present one.
    force:
        Write over files that are there.
    """
    files = Batchline(source="cli").batches.files(batch_id)
    if not files:
        raise Conflict(f"batch {batch_id} has no files yet; they are there when it is over")
    taken = [name for name in files if (to / name).exists()]
    if taken and not force:
        raise InvalidInput(f"{to / taken[0]} is there already; say --force to write over it", param="to")
    to.mkdir(parents=True, exist_ok=True)
    for name, blocks in files.items():
        partial = to / f".{name}.{uuid.uuid4().hex}"
        try:
            with partial.open("xb") as file:
                file.writelines(blocks)
            shutil.move(partial, to / name)
        finally:
            partial.unlink(missing_ok=True)
        results().print(str(to / name), markup=False)
    messages().print(f"{len(files)} files of {batch_id}", markup=False)
