"""`batchline housekeeping`: delete what is due and resume orphaned batches."""

from rich.text import Text

from batchline.cli.console import print_json, print_note
from batchline.cli.exit_codes import ExitCode
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, Row, plain, print_rows
from batchline.client import Batchline, MaintenanceItem, run_housekeeping

COLUMNS = (Column("state"), Column("chore"), Column("of"), Column("why", least=30), Column("bytes", right=True))
COLOURS = {"failed": "red", "done": "green", "to do": ""}


def housekeeping(*, apply: Flag = False, no_resume: Flag = False, json: Flag = False) -> int:
    """List what is due: expired files, leftovers of dead processes, batches whose runner died; or do it.

    Parameters
    ----------
    apply:
        Do it; otherwise nothing is changed.
    no_resume:
        Do not continue batches, which can take long.
    json:
        Print `{"data": [{kind, subject, reason, size_bytes, done, error}, …]}`.
    """
    items: list[MaintenanceItem] = []
    try:
        with Batchline(origin="cli") as client, Progress() as progress:
            progress.doing("checking")
            for item in run_housekeeping(client, apply=apply, resume=not no_resume):
                items.append(item)
                progress.doing(f"{len(items):,} jobs so far")
    finally:  # also if it was interrupted
        if json:
            print_json({"data": items})
        else:
            print_rows(map(_item_row, items), COLUMNS, none="nothing to do")
        if items and not apply and not json:
            print_note("nothing was changed; to do it: batchline housekeeping --apply")
    return ExitCode.STOPPED if any(item.error for item in items) else ExitCode.OK


def _item_row(item: MaintenanceItem) -> Row:
    state = Text(item.state, COLOURS[item.state])
    reason = plain(f"{item.reason}; {item.error}" if item.error else item.reason)
    size = f"{item.size_bytes:,}" if item.size_bytes else ""
    return state, item.name, plain(item.subject), reason, size
