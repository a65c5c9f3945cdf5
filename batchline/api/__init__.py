"""The HTTP face: OpenAI's Files and Batches API over the operations, with no logic of its own."""

from batchline.api.app import create_app
from batchline.api.server import Server

__all__ = ["Server", "create_app"]
