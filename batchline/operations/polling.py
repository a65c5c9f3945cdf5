"""What many clients ask for again and again: batches as the API's JSON, read together and fresh."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from batchline.models.batches import ListBatchesQuery
from batchline.models.errors import BatchlineError
from batchline.operations.client import Batchline
from batchline.operations.pages import list_json
from batchline.storage.records import BatchRecord, no_batch


class AskedBatch(NamedTuple):
    """A batch that somebody asks for; they see what the client sees."""

    client: Batchline
    batch_id: str
    include_analytics: bool


class AskedPage(NamedTuple):
    """A page of batches that somebody asks for."""

    client: Batchline
    query: ListBatchesQuery


def batches_json(asked: Sequence[AskedBatch]) -> list[str | Exception]:
    """Each batch as JSON, or the `NotFound` for it, in their order; all are of one database."""
    records = asked[0].client.engine.records
    found = records.rendering.batches([each.batch_id for each in asked])
    answers: list[str | Exception] = []
    for client, batch_id, include_analytics in asked:
        batch, only = found.get(batch_id), client.access.only
        if batch is None or only not in {None, batch.member_id}:
            answers.append(no_batch(batch_id))
        else:
            answers.append(batch.to_json(include_analytics=include_analytics))
    return answers


def pages_json(asked: Sequence[AskedPage]) -> list[str | Exception]:
    """Each page as JSON, or the error of it, in their order; all are of one database.

    Who ask for the same and may see the same share an answer, as many do that watch a list.
    """
    views = [(each.query, each.client.access.only) for each in asked]
    answers: dict[object, str | Exception] = {}
    wanted: dict[object, tuple[ListBatchesQuery, BatchRecord | None]] = {}
    for view, each in dict(zip(views, asked, strict=True)).items():
        try:
            wanted[view] = _seen(each), _cursor(each)
        except BatchlineError as error:
            answers[view] = error
    pages = asked[0].client.engine.records.rendering.pages(list(wanted.values()), now=int(time.time()))
    for seen, page in zip(wanted, pages, strict=True):
        answers[seen] = list_json(page.text, page.ids, has_more=page.has_more)
    return [answers[view] for view in views]


def _cursor(asked: AskedPage) -> BatchRecord | None:
    """The batch behind which the page starts, where one is named; raises where it cannot be that."""
    return None if asked.query.after is None else asked.client.batches.record(asked.query.after)


def _seen(asked: AskedPage) -> ListBatchesQuery:
    """The query, for what its asker may see."""
    whose = asked.client.access.whose(asked.query.member_id)
    return asked.query if whose == asked.query.member_id else asked.query.model_copy(update={"member_id": whose})
