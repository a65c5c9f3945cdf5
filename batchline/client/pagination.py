"""Pages of a list, each of which can fetch the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar, cast

import msgspec
from pydantic import BaseModel


class HasId(Protocol):
    """An item of a list; its id is the cursor."""

    @property
    def id(self) -> str:
        """Cursor to the items after this one."""


T = TypeVar("T", bound=HasId)


class Page(Generic[T]):
    """One page of a list. Iterating continues through all following pages."""

    def __init__(self, data: Sequence[T], has_more: bool, page_after: Callable[[str | None], Page[T]]) -> None:
        self.data = list(data)
        self.has_more = has_more
        self._page_after = page_after

    @property
    def first_id(self) -> str | None:
        """Id of the page's first object, or None if the page is empty."""
        return self.data[0].id if self.data else None

    @property
    def last_id(self) -> str | None:
        """Id of the page's last object, after which the next page starts, or None if the page is empty."""
        return self.data[-1].id if self.data else None

    def to_json(self, convert: Callable[[T], BaseModel] | None = None) -> str:
        """Return OpenAI's list object with the page's objects, converted if `convert` is given."""
        models = [convert(item) if convert else cast("BaseModel", item) for item in self.data]
        ends = {"first_id": self.first_id, "last_id": self.last_id} if models else {}
        # Pydantic encodes each model once; Raw keeps msgspec from encoding the text again.
        data = [msgspec.Raw(model.model_dump_json()) for model in models]
        return msgspec.json.encode({"object": "list", "data": data, **ends, "has_more": self.has_more}).decode()

    def next_page(self) -> Page[T] | None:
        """Return the next page, or None after the last."""
        return self._page_after(self.last_id) if self.has_more else None

    def __iter__(self) -> Iterator[T]:
        page: Page[T] | None = self
        while page is not None:
            yield from page.data
            page = page.next_page()
