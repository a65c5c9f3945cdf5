"""`batchline batches download`: a batch's files, to a folder."""

from pathlib import Path

import msgspec

from batchline.cli.console import messages, print_json, results
from batchline.cli.options import Flag
from batchline.cli.output import check_free, new_file
from batchline.cli.progress import Progress
from batchline.models.errors import Conflict, InvalidInput
from batchline.operations import Batchline


def download(batch_id: str, /, *, to: Path = Path(), force: Flag = False, json: Flag = False) -> None:
    """Copy a finished batch's files to a folder: output, errors, figures and report, as far as there are.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    to:
        The folder, made where it is missing; by default the present one.
    force:
        Write over files that are there.
    json:
        Print name, path and size of each file as JSON.
    """
    files = Batchline(source="cli").batches.files(batch_id)
    if not files:
        raise Conflict(f"batch {batch_id} has no files yet; they are there when it is over")
    _make_folder(to)
    taken = [name for name in files if (to / name).exists()]
    if taken and not force:
        raise InvalidInput(
            f"{', '.join(taken)} in {to} would be written over; say --force, or --to another folder", param="to"
        )
    for name in files:
        check_free(to / name, force=force)
    sizes: dict[str, int] = {}
    with Progress(messages()) as progress:
        for name, blocks in files.items():
            progress.doing(f"copying {name}")
            with new_file(to / name, force=force) as file:
                sizes[name] = sum(map(file.write, blocks))
    _tell(batch_id, to, sizes, json=json)


def _make_folder(to: Path) -> None:
    try:
        to.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InvalidInput(f"{to} cannot be made a folder: {error.strerror}", param="to") from error


def _tell(batch_id: str, to: Path, sizes: dict[str, int], *, json: bool) -> None:
    if json:
        files = [{"name": name, "path": str(to / name), "bytes": size} for name, size in sizes.items()]
        print_json(msgspec.json.encode({"id": batch_id, "files": files}).decode())
        return
    for name in sizes:
        results().print(str(to / name), markup=False, soft_wrap=True)
    messages().print(f"{len(sizes)} files, {sum(sizes.values()):,} bytes", markup=False)
