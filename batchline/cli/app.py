"""The command table, and the reporting of errors."""

import logging
import os
import sys
from importlib.metadata import version
from typing import NoReturn

import cyclopts
from pydantic import ValidationError

from batchline.cli.console import ConsoleLogHandler, escape_unencodable, print_error
from batchline.cli.exit_codes import EXIT_CODES_HELP, ExitCode, exit_code_of_error
from batchline.models.errors import BatchlineError

app = cyclopts.App(
    name="batchline",
    help="Run OpenAI-format batch files against any OpenAI-compatible server.",
    help_format="plaintext",
    version=lambda: version("batchline"),
    result_action="return_value",
)
# By import path, so that a command loads only its own modules; its help must then be given here.
app.command(
    "batchline.cli.run:run",
    help=f"Run a batch file to its end, or continue a batch that was stopped.\n\n{EXIT_CODES_HELP}",
)
app.command("batchline.cli.validate:validate", help="Check a batch file and print all errors in it.")
app.command(
    "batchline.cli.sync:sync",
    help="Create a batch for each new or changed file in a folder, exactly once, and run it.\n\n"
    "Exit status: 0 the sync is done, whatever the outcome of the batches; 6 a file could not be read, or another "
    "step failed.",
)
app.command("batchline.cli.show:show", help="Show a batch: its state, its metrics, the paths of its files.")
app.command(
    "batchline.cli.batches:app",
    name="batches",
    help="Create, list, watch, cancel, retry, read and delete batches.",
)
app.command("batchline.cli.files:app", name="files", help="Upload, list, read and delete files.")
app.command(
    "batchline.cli.housekeeping:housekeeping",
    help="List what is due: expired files, leftovers, batches whose runner died; or do it.\n\n"
    "Exit status: 0 nothing is due, or all is done; 6 something could not be done.",
)
app.command(
    "batchline.cli.serve:serve",
    help="Serve OpenAI's Files and Batches API and web pages, and run the batches that are created there.",
)
app.command("batchline.cli.keys:app", name="keys", help="Create, list and revoke API keys.")
app.command("batchline.cli.simulate:simulate", help="Serve a simulated upstream for trials.")
app.command("batchline.cli.prefect_setup:app", name="prefect", help="Set up a Prefect server for the deployments.")
app.command("batchline.cli.db:app", name="db", help="Maintain the database of records.")
app.command(
    "batchline.cli.completion:completion",
    help="Print the script with which bash, zsh or fish completes commands and options.\n\nWrite it to the "
    "shell's file: ~/.local/share/bash-completion/completions/batchline, _batchline in a folder of zsh's $fpath, "
    "or ~/.config/fish/completions/batchline.fish.",
)


def main() -> NoReturn:
    """Run the command that the arguments name and exit with its status."""
    escape_unencodable()
    logging.basicConfig(level=logging.WARNING, handlers=[ConsoleLogHandler()])
    status: object = ExitCode.OK
    try:
        status = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except BatchlineError as error:
        print_error(str(error))
        status = exit_code_of_error(error)
    except cyclopts.CycloptsError as error:
        command, reason = " ".join(("batchline", *(error.command_chain or ()))), str(error).strip().rstrip(".")
        if isinstance(error.__cause__, ValidationError):
            reason = "; ".join(
                f"--{'.'.join(map(str, detail['loc'])).replace('_', '-')}: {detail['msg']}"
                for detail in error.__cause__.errors()
            )
        print_error(f"{reason}; see `{command} --help`")
        status = ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print_error("interrupted")
        status = ExitCode.STOPPED
    except BrokenPipeError:
        # The reader of our output has exited; without this, the flush at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print_error(f"the machine failed: {error}")
        status = ExitCode.STOPPED
    sys.exit(status if isinstance(status, int) else ExitCode.OK)
