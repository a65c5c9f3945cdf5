"""A page of a list that knows how to get the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar, cast

import msgspec
from pydantic import BaseModel


class HasId(Protocol):
    """What can be listed: something with an id, which is the cursor."""

    @property
    def id(self) -> str:
        """The cursor behind it."""


T = TypeVar("T", bound=HasId)


class Page(Generic[T]):
    """Some objects of a list. Iterating goes on through all the pages that follow."""

    def __init__(self, data: Sequence[T], has_more: bool, page_after: Callable[[str | None], Page[T]]) -> None:
        self.data = list(data)
        self.has_more = has_more
        self._page_after = page_after

    @property
    def first_id(self) -> str | None:
        """Id of the page's first object; none of an empty page."""
        return self.data[0].id if self.data else None

    @property
    def last_id(self) -> str | None:
        """Id of the page's last object, behind which the next page starts; none of an empty page."""
        return self.data[-1].id if self.data else None

    def to_json(self, convert: Callable[[T], BaseModel] | None = None) -> str:
        """The list object of OpenAI's API, of the objects as they are or as they are to be shown."""
        models = [convert(item) if convert else cast("BaseModel", item) for item in self.data]
        ends = {"first_id": self.first_id, "last_id": self.last_id} if models else {}
        data = [msgspec.Raw(model.model_dump_json()) for model in models]
        return msgspec.json.encode({"object": "list", "data": data, **ends, "has_more": self.has_more}).decode()

    def next_page(self) -> Page[T] | None:
        """The page that follows; none behind the last."""
        return self._page_after(self.last_id) if self.has_more else None

    def __iter__(self) -> Iterator[T]:
        page: Page[T] | None = self
        while page is not None:
            yield from page.data
            page = page.next_page()
