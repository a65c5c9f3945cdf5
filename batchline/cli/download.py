"""`batchline batches download`: copy a batch's files to a folder."""

from pathlib import Path

from batchline.cli.console import print_object, stdout_console
from batchline.cli.options import BatchId, Flag, JsonFlag
from batchline.cli.output_files import open_new_file, require_not_exists
from batchline.cli.progress import Progress
from batchline.client import Batchline
from batchline.models.errors import Conflict, InvalidInput


def download(batch_id: BatchId, /, *, to: Path = Path(), force: Flag = False, json: JsonFlag = False) -> None:
    """Copy a finished batch's files to a folder: output, errors, metrics and report.

    Parameters
    ----------
    to:
        The folder, created if necessary; by default the working directory.
    force:
        Overwrite existing files.
    """
    files = Batchline(origin="cli").batches.files(batch_id)
    if not files:
        raise Conflict(f"batch {batch_id} has no files until it has ended")
    try:
        to.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InvalidInput(f"folder {to} cannot be created: {error.strerror}", param="to") from error
    existing = [name for name in files if (to / name).exists()]
    if existing and not force:
        raise InvalidInput(
            f"{', '.join(existing)} in {to} would be overwritten; add --force, or --to another folder", param="to"
        )
    for name in files:
        require_not_exists(to / name, force=force)
    sizes: dict[str, int] = {}
    with Progress() as progress:
        for name, blocks in files.items():
            progress.doing(f"copying {name}")
            with open_new_file(to / name, force=force) as file:
                sizes[name] = sum(map(file.write, blocks))
    written = [{"name": name, "path": str(to / name), "bytes": size} for name, size in sizes.items()]
    if not json:
        for name in sizes:
            stdout_console().print(str(to / name), markup=False, soft_wrap=True)
    note = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
    print_object({"id": batch_id, "files": written}, json=json, note=note)
