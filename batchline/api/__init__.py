"""The HTTP server: OpenAI's Files and Batches API over the client, without logic of its own."""

from batchline.api.app import create_app
from batchline.api.server import Server

__all__ = ["Server", "create_app"]
