"""The pages for people: what the API does, to look at and to click on, with no logic of its own."""

from batchline.web.app import with_pages

__all__ = ["with_pages"]
