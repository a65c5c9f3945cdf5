"""The commands and how their errors reach a person."""

import logging
import sys
from importlib.metadata import version
from typing import NoReturn

import cyclopts
from rich.console import Console

from batchline.cli.exits import Exit, exit_of_error
from batchline.models.errors import BatchlineError

app = cyclopts.App(
    name="batchline",
    help="Run OpenAI-format batch files against any OpenAI-compatible server.",
    version=lambda: version("batchline"),
    result_action="return_value",
)
app.command("batchline.cli.run:run")
app.command("batchline.cli.validate:validate")
app.command("batchline.cli.show:show")
app.command("batchline.cli.simulate:simulate")
app.command("batchline.cli.db:app", name="db")


def main() -> NoReturn:
    """Run the command that the arguments name and exit with its status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        status = app(exit_on_error=False, print_error=True)
    except BatchlineError as error:
        complain(str(error))
        status = exit_of_error(error)
    except cyclopts.CycloptsError:
        status = Exit.BAD_INPUT
    except KeyboardInterrupt:
        complain("interrupted")
        status = Exit.STOPPED
    sys.exit(status if isinstance(status, int) else Exit.OK)


def complain(message: str) -> None:
    """Say on standard error what went wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {_plain(message)}")


def _plain(message: str) -> str:
    return message.replace("[", r"\[")
