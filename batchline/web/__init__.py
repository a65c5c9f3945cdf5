"""Web pages with the functions of the API, without logic of their own."""

from batchline.web.app import with_pages

__all__ = ["with_pages"]
