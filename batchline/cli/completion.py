"""`batchline completion`: shell completion scripts."""

from typing import Literal

from batchline.cli.console import print_json as write


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print the script with which a shell completes commands and options.

    Parameters
    ----------
    shell:
        Name of the shell.
    """
    from batchline.cli.app import app  # noqa: PLC0415 - it loads this command

    write(app.generate_completion(prog_name="batchline", shell=shell))
