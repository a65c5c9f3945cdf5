"""`batchline housekeeping`: delete what is due, go on with what was left lying."""

import msgspec
from rich.text import Text

from batchline.cli.console import messages, print_json
from batchline.cli.exits import Exit
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, Row, print_rows
from batchline.cli.words import plain
from batchline.operations import Batchline
from batchline.operations import housekeeping as chores_of
from batchline.operations.housekeeping import Chore

COLUMNS = (Column("state"), Column("chore"), Column("of"), Column("why", least=30), Column("bytes", right=True))
COLOURS = {"failed": "red", "done": "green", "to do": ""}


def housekeeping(*, apply: Flag = False, no_resume: Flag = False, json: Flag = False) -> int:
    """Show what is to be done: expired files, leftovers of dead processes, batches whose runner died; or do it.

    Parameters
    ----------
    apply:
        Do it. Without, nothing is changed.
    no_resume:
        Do not go on with batches, which can take long.
    json:
        Print `{"data": [{kind, subject, reason, size_bytes, done, error}, …]}`.
    """
    chores: list[Chore] = []
    try:
        with Batchline(source="cli") as client, Progress(messages()) as progress:
            progress.doing("looking round")
            for chore in chores_of(client, apply=apply, resume=not no_resume):
                chores.append(chore)
                progress.doing(f"{len(chores):,} chores so far")
    finally:  # also of a round that was interrupted
        _print(chores, apply=apply, json=json)
    return Exit.STOPPED if any(chore.error for chore in chores) else Exit.OK


def _print(chores: list[Chore], *, apply: bool, json: bool) -> None:
    if json:
        print_json(msgspec.json.encode({"data": chores}).decode())
        return
    print_rows(map(_row, chores), COLUMNS, none="nothing to do")
    if chores and not apply:
        messages().print("nothing was changed; do it with: batchline housekeeping --apply", markup=False)


def _row(chore: Chore) -> Row:
    state = Text(chore.state, COLOURS[chore.state])
    why = plain(f"{chore.reason}; {chore.error}" if chore.error else chore.reason)
    size = f"{chore.size_bytes:,}" if chore.size_bytes else ""
    return state, chore.name, plain(chore.subject), why, size
