"""Show one page of a list, or all pages."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pydantic import BaseModel

from batchline.cli.console import print_json, print_note
from batchline.cli.output_files import print_json_list
from batchline.client.pagination import HasId, Page
from batchline.models.errors import InvalidInput
from batchline.models.pagination import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE

L = TypeVar("L", bound=HasId)


def page_size(limit: int | None, *, all_: bool) -> int:
    """Return the number of items on a page; raises `InvalidInput` if both options are given."""
    if all_ and limit is not None:
        raise InvalidInput("give either --all or --limit, not both", param="limit")
    return MAX_PAGE_SIZE if all_ else DEFAULT_PAGE_SIZE if limit is None else limit


def select_items(page: Page[L], *, all_: bool) -> Iterable[L]:
    """Return the page's objects, or with `all_` those of all following pages too."""
    return page if all_ else page.data


def print_more_hint(page: Page[L], *, all_: bool) -> None:
    """Print how to see further items, if there are any."""
    if page.has_more and not all_:
        print_note(f"there are more: --after {page.last_id}, or --all")


def print_page(page: Page[L], *, all_: bool, convert: Callable[[L], BaseModel]) -> None:
    """Print the list object of the page, or with `all_` one of all following pages too."""
    if not all_:
        print_json(page.to_json(convert))
        return
    last_id: str | None = None

    def encode_items() -> Iterator[bytes]:
        nonlocal last_id
        for item in page:
            last_id = item.id
            yield convert(item).model_dump_json().encode()

    def closing_members() -> Iterator[bytes]:
        if last_id is not None:
            yield b',"first_id":"%b","last_id":"%b"' % (str(page.first_id).encode(), last_id.encode())
        yield b',"has_more":false'

    print_json_list(encode_items(), head=b'"object":"list",', tail=closing_members())
