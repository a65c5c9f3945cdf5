"""The command line: a face of the operations, with no logic of its own."""

from batchline.cli.app import main

__all__ = ["main"]
