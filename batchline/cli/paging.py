"""Lists of which a page is shown, or all."""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeVar

from cyclopts import Parameter
from pydantic import BaseModel

from batchline.cli.console import messages, print_json
from batchline.cli.output import print_list
from batchline.models.errors import InvalidInput
from batchline.models.pagination import DEFAULT_PAGE, MAX_PAGE
from batchline.operations.pages import Listed, Page

L = TypeVar("L", bound=Listed)

AllFlag = Annotated[bool, Parameter(name="--all", negative="", show_default=False)]


def page_size(limit: int | None, *, all_: bool) -> int:
    """How many a page holds; raises `InvalidInput` for a limit on all."""
    if all_ and limit is not None:
        raise InvalidInput("say either --all or --limit, not both", param="limit")
    return MAX_PAGE if all_ else DEFAULT_PAGE if limit is None else limit


def shown(page: Page[L], *, all_: bool) -> Iterable[L]:
    """The page's objects, or those of all that follow it as well."""
    return page if all_ else page.data


def say_more(page: Page[L], *, all_: bool) -> None:
    """Tell how to see those that are not on the page."""
    if page.has_more and not all_:
        messages().print(f"there are more: --after {page.last_id}, or --all", markup=False)


def print_page(page: Page[L], *, all_: bool, show: Callable[[L], BaseModel]) -> None:
    """Print the list object of the page, or one of all that follow it as well."""
    if not all_:
        print_json(page.to_json(show))
        return
    last: str | None = None

    def items() -> Iterator[bytes]:
        nonlocal last
        for each in page:
            last = each.id
            yield show(each).model_dump_json().encode()

    def end() -> Iterator[bytes]:
        if last is not None:
            yield b',"first_id":"%b","last_id":"%b"' % (str(page.first_id).encode(), last.encode())
        yield b',"has_more":false'

    print_list(items(), kind=b'"object":"list",', end=end())
