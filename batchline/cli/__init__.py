"""The command line, built on the client without logic of its own."""

from batchline.cli.app import main

__all__ = ["main"]
