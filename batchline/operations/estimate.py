"""What a file's requests would cost, told before any is sent: tokens by their size, prices by model."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Raw
from pydantic import Field

from batchline.models.errors import InvalidInput
from batchline.models.json_scan import members
from batchline.models.settings import Settings
from batchline.models.wire import WireModel
from batchline.operations.client import Batchline
from batchline.steps.faults import MAX_MODEL, MAX_MODELS
from batchline.steps.intake import input_blocks
from batchline.steps.prices import PriceBook, Rates, Tariff, TokenCounts, as_text, price_book, total
from batchline.steps.stretches import stretches_of
from batchline.steps.validate import BYTES_A_TOKEN

ATTACHMENT_TOKENS: Final = 1_000
"""Input tokens that an image or file in base64 is counted as: about those of a picture of a megapixel."""

LEAST_CHARACTERS: Final = 16
"""Different characters at the start of such a run; filler, as a row of one letter, has fewer."""

_BASE64: Final = re.compile(rb"[A-Za-z0-9+/\\]{1000,}={0,2}")
"""Text has spaces; a long run without any is an image, a file or sound, the slashes in it escaped or not."""

WITHOUT_OUTPUT: Final = frozenset({"/v1/embeddings", "/v1/moderations"})
"""Endpoints whose answers are not generated, so that no output is billed."""

MOST_DIGITS: Final = 15
"""Of a limit; a longer one is none."""

_FILE_ID: Final = re.compile(r"file-[0-9a-f]{32}")


class ModelEstimate(WireModel):
    """What one model's requests would use; costs are exact decimals, absent where there is no price.

    `output_tokens_at_most` and its cost are those of the requests that set a limit to their answers;
    `without_limit` is how many set none. The last four fields say the same as Doubleword's clients read it.
    """

    model: str
    requests: int
    input_tokens: int
    output_tokens_at_most: int
    without_limit: int
    input_cost: str | None = None
    output_cost_at_most: str | None = None
    price_source: str | None = None
    request_count: int
    estimated_input_tokens: int
    estimated_output_tokens: int
    estimated_cost: str = Field(description="Of the input and of the output at most; 0 if there is no price.")


class CostEstimate(WireModel):
    """What a file's requests would use.

    Input tokens are the requests' bytes divided by four: rough, but of the right order for English; each of the
    `attachments` (images and files in base64) counts as `ATTACHMENT_TOKENS` instead. A cost is absent where a
    model has no price, `most` also where a request sets no limit to its answer. `currency` is absent where prices
    are a person's own. `unreadable` lines are no requests and are not counted. `file_id` and the totals are the
    names that Doubleword's clients read; there `unpriced_models` count as 0.
    """

    requests: int
    unreadable: int
    attachments: int = 0
    input_tokens: int
    output_tokens_at_most: int
    without_limit: int
    least: str | None = None
    most: str | None = None
    currency: str | None = None
    unpriced_models: list[str]
    models: list[ModelEstimate]
    file_id: str | None = Field(default=None, description="Of an uploaded file.")
    total_requests: int
    total_estimated_input_tokens: int
    total_estimated_output_tokens: int
    total_estimated_cost: str


class _Body(msgspec.Struct):
    model: str | None = None
    n: Raw = Raw()
    best_of: Raw = Raw()
    max_completion_tokens: Raw = Raw()
    max_tokens: Raw = Raw()
    max_output_tokens: Raw = Raw()


class _Request(msgspec.Struct):
    url: str
    body: _Body


class _Sums(msgspec.Struct):
    """Of the requests of one model that are priced alike."""

    requests: int = 0
    size_bytes: int = 0
    attachments: int = 0
    output_tokens: int = 0
    without_limit: int = 0

    @property
    def input_tokens(self) -> int:
        """By the size of their text and the number of what is attached."""
        return self.size_bytes // BYTES_A_TOKEN + self.attachments * ATTACHMENT_TOKENS


_decode = msgspec.json.Decoder(_Request).decode


def estimate_cost(client: Batchline, file: str | Path) -> CostEstimate:
    """Estimate what the requests would cost of the input file at that path, or of the uploaded one of that id.

    Streams with constant memory. Raises `NotFound` for an unknown id, and `InvalidInput` for a file that cannot be
    read, is no input file, or holds no request.
    """
    return estimate_requests(_blocks(client, file), client.engine.settings)


def _blocks(client: Batchline, file: str | Path) -> Iterator[bytes]:
    if Path(file).exists() or not _FILE_ID.fullmatch(str(file)):
        return input_blocks(Path(file))
    return _stored_blocks(client, str(file))


def estimate_stored(client: Batchline, file_id: str) -> CostEstimate:
    """Estimate what the requests of that uploaded file would cost; raises as `estimate_cost`."""
    found = estimate_requests(_stored_blocks(client, file_id), client.engine.settings)
    return found.model_copy(update={"file_id": file_id})


def _stored_blocks(client: Batchline, file_id: str) -> Iterator[bytes]:
    found = client.files.retrieve(file_id)
    if found.purpose != "batch":
        raise InvalidInput(
            f"file {found.id} is {found.purpose}; costs are estimated of an input file, of purpose batch",
            param="file",
        )
    return client.files.content(found.id)


def estimate_requests(blocks: Iterator[bytes], settings: Settings) -> CostEstimate:
    """Estimate what the requests in these bytes of a decompressed input file would cost."""
    counting = _Counting(price_book(settings))
    for stretch in stretches_of(blocks, max_line_bytes=settings.max_line_bytes):
        counting.unreadable += bool(stretch.overlong)
        for line in stretch.lines:
            if line and not line.isspace():
                counting.add(line)
    if not counting.sums:
        raise InvalidInput("the file holds no request; write one JSON object a line", param="file")
    return counting.estimate()


class _Counting:
    """Sums requests by model and by the step of its tariff that their length reaches."""

    def __init__(self, book: PriceBook) -> None:
        self.sums: defaultdict[str, dict[int, _Sums]] = defaultdict(dict)
        self.unreadable = 0
        self._book = book
        self._now = time.time()

    def add(self, line: bytes) -> None:
        """Count a line."""
        request = _read(line)
        model = "" if request is None else request.body.model or ""
        is_new = model not in self.sums
        if request is None or (is_new and (len(model) > MAX_MODEL or len(self.sums) >= MAX_MODELS)):
            self.unreadable += 1
            return
        tariff = self._book.tariff(model)
        attached = [len(run) for run in _BASE64.findall(line) if len(set(run[:200])) > LEAST_CHARACTERS]
        size_bytes = len(line) + 1 - sum(attached)
        tokens = size_bytes // BYTES_A_TOKEN + len(attached) * ATTACHMENT_TOKENS
        step = bisect_left(tariff.starts, tokens) if tariff else 0
        sums = self.sums[model].setdefault(step, _Sums())
        most = _most_output(request)
        sums.requests += 1
        sums.size_bytes += size_bytes
        sums.attachments += len(attached)
        sums.output_tokens += most or 0
        sums.without_limit += most is None

    def estimate(self) -> CostEstimate:
        """What they come to."""
        models = [self._model(model, steps) for model, steps in sorted(self.sums.items())]
        tariffs = [self._book.tariff(model) for model in self.sums]
        least = _sum([model.input_cost for model in models])
        output = _sum([model.output_cost_at_most for model in models])
        without_limit = sum(model.without_limit for model in models)
        requests = sum(model.requests for model in models)
        input_tokens = sum(model.input_tokens for model in models)
        output_tokens = sum(model.output_tokens_at_most for model in models)
        return CostEstimate(
            requests=requests,
            unreadable=self.unreadable,
            attachments=sum(sums.attachments for steps in self.sums.values() for sums in steps.values()),
            input_tokens=input_tokens,
            output_tokens_at_most=output_tokens,
            without_limit=without_limit,
            least=least,
            most=None if without_limit else _sum([least, output]),
            currency=_currency(tariffs),
            unpriced_models=[model.model for model in models if model.input_cost is None],
            models=models,
            total_requests=requests,
            total_estimated_input_tokens=input_tokens,
            total_estimated_output_tokens=output_tokens,
            total_estimated_cost=as_text(total(Decimal(model.estimated_cost) for model in models)),
        )

    def _model(self, name: str, steps: dict[int, _Sums]) -> ModelEstimate:
        tariff = self._book.tariff(name)
        rates = [tariff.rates(tariff.period_at(self._now), step) if tariff else None for step in steps]
        priced = [(each, sums) for each, sums in zip(rates, steps.values(), strict=True) if each]
        is_priced = len(priced) == len(steps)
        requests = sum(sums.requests for sums in steps.values())
        input_tokens = sum(sums.input_tokens for sums in steps.values())
        output_tokens = sum(sums.output_tokens for sums in steps.values())
        costs = (total(_input_cost(*each) for each in priced), total(_output_cost(*each) for each in priced))
        return ModelEstimate(
            model=name,
            requests=requests,
            input_tokens=input_tokens,
            output_tokens_at_most=output_tokens,
            without_limit=sum(sums.without_limit for sums in steps.values()),
            input_cost=as_text(costs[0]) if is_priced else None,
            output_cost_at_most=as_text(costs[1]) if is_priced else None,
            price_source=tariff.source if tariff and is_priced else None,
            request_count=requests,
            estimated_input_tokens=input_tokens,
            estimated_output_tokens=output_tokens,
            estimated_cost=as_text(total(costs)) if is_priced else "0",
        )


def _input_cost(rates: Rates, sums: _Sums) -> Decimal:
    return rates.cost(TokenCounts(sums.requests, sums.input_tokens, 0, 0, 0, 0))


def _output_cost(rates: Rates, sums: _Sums) -> Decimal:
    """The most, since answers may be all reasoning or none."""
    plain = rates.cost(TokenCounts(0, 0, 0, 0, sums.output_tokens, 0))
    return max(plain, rates.cost(TokenCounts(0, 0, 0, 0, sums.output_tokens, sums.output_tokens)))


def _sum(costs: list[str | None]) -> str | None:
    """Their sum; none where one is not known."""
    known = [Decimal(cost) for cost in costs if cost is not None]
    return as_text(total(known)) if len(known) == len(costs) else None


def _currency(tariffs: list[Tariff | None]) -> str | None:
    """That of all prices, where they have one together."""
    found = {tariff.currency for tariff in tariffs if tariff is not None}
    return found.pop() if len(found) == 1 else None


def _most_output(request: _Request) -> int | None:
    """The most tokens that the answer may have; none where the request sets no limit."""
    if request.url in WITHOUT_OUTPUT:
        return 0
    body = request.body
    limits = map(_count, (body.max_completion_tokens, body.max_tokens, body.max_output_tokens))
    limit = next((limit for limit in limits if limit is not None), None)
    return None if limit is None else limit * max(1, _count(body.n) or 1, _count(body.best_of) or 1)


def _count(value: Raw) -> int | None:
    text = bytes(value)
    return int(text) if text.isdigit() and len(text) <= MOST_DIGITS else None


def _read(line: bytes) -> _Request | None:
    """What is looked at of the request; none where the line is none."""
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # valid lines may have lone surrogates, which the fast way does not take
        found = members(line, "url", "body")
        body = members(found["body"], *_Body.__struct_fields__)
        url, model = (msgspec.json.decode(each, type=str) for each in (found["url"], body.pop("model")))
        return _Request(url, _Body(model, **{name: Raw(text) for name, text in body.items()}))
    except (KeyError, ValueError):
        return None
