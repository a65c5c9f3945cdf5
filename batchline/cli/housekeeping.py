"""`batchline housekeeping`: delete what is due, go on with what was left lying."""

from typing import Annotated

import msgspec
from cyclopts import Parameter

from batchline.cli.console import messages, print_json, results
from batchline.cli.exits import Exit
from batchline.operations import Batchline
from batchline.operations import housekeeping as chores_of
from batchline.operations.housekeeping import Chore

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


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
    with Batchline(source="cli") as client:
        for chore in chores_of(client, apply=apply, resume=not no_resume):
            chores.append(chore)
            if not json:
                results().print(_line(chore), markup=False)
    if json:
        print_json(msgspec.json.encode({"data": chores}).decode())
    elif not chores:
        results().print("nothing to do")
    elif not apply:
        messages().print("nothing was changed; do it with --apply")
    return Exit.STOPPED if any(chore.error for chore in chores) else Exit.OK


def _line(chore: Chore) -> str:
    state = f"failed ({chore.error})" if chore.error else "done" if chore.done else "to do"
    size = f", {chore.size_bytes:,} bytes" if chore.size_bytes else ""
    return f"{state}: {chore.kind.replace('_', ' ')} {chore.subject}: {chore.reason}{size}"
