"""A Prefect server with its pages, our deployments and a worker, and a browser to use them with."""

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.prefect_pages import BOTH, PrefectPages
from helpers.prefect_stack import PrefectStack, kill_tree, open_prefect_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectStack]:
    """A Prefect server with its pages and our deployments, without a worker."""
    yield from open_prefect_stack(tmp_path_factory.mktemp("site"), pages=True)


@pytest.fixture(scope="module")
def stack_with_worker(stack: PrefectStack) -> Iterator[PrefectStack]:
    """The server with a worker."""
    worker = stack.worker()
    yield stack
    kill_tree(worker)


@pytest.fixture(params=BOTH, ids=["v1", "v2"])
def pages(request: pytest.FixtureRequest, chromium: Any, stack: PrefectStack) -> Iterator[PrefectPages]:
    """A browser window on the server's pages, in each of their two versions."""
    opened = PrefectPages(chromium, stack.api, request.param)
    yield opened
    opened.close()
