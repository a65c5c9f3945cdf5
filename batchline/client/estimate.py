"""Estimate the cost of a file's requests before any is sent: tokens by size, prices by model."""

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

from batchline.analytics.prices import (
    PriceBook,
    TokenCounts,
    TokenPrices,
    build_price_book,
    format_cost,
    sum_exact,
)
from batchline.client.client import Batchline
from batchline.engine.ingest import read_input_blocks
from batchline.models.base import WireModel
from batchline.models.errors import InvalidInput
from batchline.models.json_scan import read_members
from batchline.models.settings import Settings
from batchline.steps.line_blocks import split_line_blocks
from batchline.steps.line_errors import MAX_MODEL_CHARS, MAX_MODELS
from batchline.steps.validate_lines import BYTES_PER_TOKEN

TOKENS_PER_ATTACHMENT: Final = 1_000
"""Input tokens counted for a base64 image or file: about those of a one-megapixel picture."""

MIN_DISTINCT_CHARACTERS: Final = 16
"""Distinct characters at the start of a base64 run; filler, such as one repeated letter, has fewer."""

_BASE64: Final = re.compile(rb"[A-Za-z0-9+/\\]{1000,}={0,2}")
"""Long runs without spaces: an image, file or sound, not text. Slashes may be escaped."""

ENDPOINTS_WITHOUT_OUTPUT: Final = frozenset({"/v1/embeddings", "/v1/moderations"})
"""Endpoints whose answers are not generated, so that no output is billed."""

MAX_LIMIT_DIGITS: Final = 15
"""Digits above which a token limit is ignored."""

_FILE_ID: Final = re.compile(r"file-[0-9a-f]{32}")


class ModelEstimate(WireModel):
    """Estimated usage of one model's requests; costs are exact decimals, absent if no price is known.

    `output_tokens_at_most` and its cost cover the requests that limit their answers; `without_limit` counts those
    that do not. The last four fields repeat the values under the names that Doubleword's clients read.
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
    estimated_cost: str = Field(description="Cost of the input and at most of the output; 0 if there is no price.")


class CostEstimate(WireModel):
    """Estimated usage of a file's requests.

    Input tokens are the requests' bytes divided by four: rough, but of the right order for English; each of the
    `attachments` (images and files in base64) counts as `TOKENS_PER_ATTACHMENT` instead. A cost is absent if a
    model has no price, `most` also if a request does not limit its answer. `currency` is absent if prices were
    configured by hand. `unreadable` lines are not requests and are not counted. `file_id` and the totals are the
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
    file_id: str | None = Field(default=None, description="Id, if the file was uploaded.")
    total_requests: int
    total_estimated_input_tokens: int
    total_estimated_output_tokens: int
    total_estimated_cost: str


class _CostFields(msgspec.Struct):
    model: str | None = None
    n: Raw = Raw()
    best_of: Raw = Raw()
    max_completion_tokens: Raw = Raw()
    max_tokens: Raw = Raw()
    max_output_tokens: Raw = Raw()


class _CostRequest(msgspec.Struct):
    url: str
    body: _CostFields


class _ModelTotals(msgspec.Struct):
    """Totals of the requests of one model in one price tier."""

    requests: int = 0
    size_bytes: int = 0
    attachments: int = 0
    output_tokens: int = 0
    without_limit: int = 0

    @property
    def input_tokens(self) -> int:
        """Estimated from the size of the text and the number of attachments."""
        return self.size_bytes // BYTES_PER_TOKEN + self.attachments * TOKENS_PER_ATTACHMENT


_decode = msgspec.json.Decoder(_CostRequest).decode


def estimate_cost(client: Batchline, file: str | Path) -> CostEstimate:
    """Estimate the cost of the requests in a local input file, or in the uploaded file with that id.

    Streams with constant memory. Raises `NotFound` for an unknown id, and `InvalidInput` for a file that cannot be
    read, is not an input file, or holds no request.
    """
    is_path = Path(file).exists() or not _FILE_ID.fullmatch(str(file))
    blocks = read_input_blocks(Path(file)) if is_path else _read_stored_blocks(client, str(file))
    return estimate_requests(blocks, client.settings)


def estimate_file(client: Batchline, file_id: str) -> CostEstimate:
    """Estimate the cost of the requests in that uploaded file; raises like `estimate_cost`."""
    estimate = estimate_requests(_read_stored_blocks(client, file_id), client.settings)
    return estimate.model_copy(update={"file_id": file_id})


def _read_stored_blocks(client: Batchline, file_id: str) -> Iterator[bytes]:
    file = client.files.retrieve(file_id)
    if file.purpose != "batch":
        raise InvalidInput(
            f"file {file.id} is {file.purpose}; costs are estimated of an input file, of purpose batch",
            param="file",
        )
    return client.files.content(file.id)


def estimate_requests(blocks: Iterator[bytes], settings: Settings) -> CostEstimate:
    """Estimate the cost of the requests in these bytes of a decompressed input file."""
    estimator = _Estimator(build_price_book(settings))
    for block in split_line_blocks(blocks, max_line_bytes=settings.max_line_bytes):
        estimator.unreadable += bool(block.too_long_bytes)
        for line in block.lines:
            if line and not line.isspace():
                estimator.add(line)
    if not estimator.totals:
        raise InvalidInput("the file has no requests; write one JSON object per line", param="file")
    return estimator.estimate()


class _Estimator:
    """Sums requests by model and by the tariff tier that their length reaches."""

    def __init__(self, book: PriceBook) -> None:
        self.totals: defaultdict[str, dict[int, _ModelTotals]] = defaultdict(dict)
        self.unreadable = 0
        self._book = book
        self._now = time.time()

    def add(self, line: bytes) -> None:
        """Count a line."""
        request = _parse_request(line)
        model = "" if request is None else request.body.model or ""
        # Limits the memory that a file with endless distinct models can take.
        is_new = model not in self.totals
        if request is None or (is_new and (len(model) > MAX_MODEL_CHARS or len(self.totals) >= MAX_MODELS)):
            self.unreadable += 1
            return
        tariff = self._book.find_tariff(model)
        attachment_sizes = [
            len(text) for text in _BASE64.findall(line) if len(set(text[:200])) > MIN_DISTINCT_CHARACTERS
        ]
        size_bytes = len(line) + 1 - sum(attachment_sizes)
        tokens = size_bytes // BYTES_PER_TOKEN + len(attachment_sizes) * TOKENS_PER_ATTACHMENT
        tier = bisect_left(tariff.tier_starts, tokens) if tariff else 0
        totals = self.totals[model].setdefault(tier, _ModelTotals())
        max_output = _max_output_tokens(request)
        totals.requests += 1
        totals.size_bytes += size_bytes
        totals.attachments += len(attachment_sizes)
        totals.output_tokens += max_output or 0
        totals.without_limit += max_output is None

    def estimate(self) -> CostEstimate:
        """Return the estimate for the lines counted so far."""
        models = [self._estimate_model(model, tiers) for model, tiers in sorted(self.totals.items())]
        tariffs = (self._book.find_tariff(model) for model in self.totals)
        currencies = {tariff.currency for tariff in tariffs if tariff is not None}
        input_cost = _add_costs([model.input_cost for model in models])
        max_output_cost = _add_costs([model.output_cost_at_most for model in models])
        without_limit = sum(model.without_limit for model in models)
        requests = sum(model.requests for model in models)
        input_tokens = sum(model.input_tokens for model in models)
        output_tokens = sum(model.output_tokens_at_most for model in models)
        return CostEstimate(
            requests=requests,
            unreadable=self.unreadable,
            attachments=sum(totals.attachments for tiers in self.totals.values() for totals in tiers.values()),
            input_tokens=input_tokens,
            output_tokens_at_most=output_tokens,
            without_limit=without_limit,
            least=input_cost,
            most=None if without_limit else _add_costs([input_cost, max_output_cost]),
            currency=currencies.pop() if len(currencies) == 1 else None,
            unpriced_models=[model.model for model in models if model.input_cost is None],
            models=models,
            total_requests=requests,
            total_estimated_input_tokens=input_tokens,
            total_estimated_output_tokens=output_tokens,
            total_estimated_cost=format_cost(sum_exact(Decimal(model.estimated_cost) for model in models)),
        )

    def _estimate_model(self, model: str, tiers: dict[int, _ModelTotals]) -> ModelEstimate:
        tariff = self._book.find_tariff(model)
        prices = [tariff.prices_for(tariff.find_period(self._now), tier) if tariff else None for tier in tiers]
        priced = [(price, totals) for price, totals in zip(prices, tiers.values(), strict=True) if price]
        is_priced = len(priced) == len(tiers)
        requests = sum(totals.requests for totals in tiers.values())
        input_tokens = sum(totals.input_tokens for totals in tiers.values())
        output_tokens = sum(totals.output_tokens for totals in tiers.values())
        input_costs = (
            price.cost(TokenCounts(totals.requests, totals.input_tokens, 0, 0, 0, 0)) for price, totals in priced
        )
        costs = sum_exact(input_costs), sum_exact(_compute_max_output_cost(*pair) for pair in priced)
        return ModelEstimate(
            model=model,
            requests=requests,
            input_tokens=input_tokens,
            output_tokens_at_most=output_tokens,
            without_limit=sum(totals.without_limit for totals in tiers.values()),
            input_cost=format_cost(costs[0]) if is_priced else None,
            output_cost_at_most=format_cost(costs[1]) if is_priced else None,
            price_source=tariff.source if tariff and is_priced else None,
            request_count=requests,
            estimated_input_tokens=input_tokens,
            estimated_output_tokens=output_tokens,
            estimated_cost=format_cost(sum_exact(costs)) if is_priced else "0",
        )


def _compute_max_output_cost(prices: TokenPrices, totals: _ModelTotals) -> Decimal:
    """Return the higher cost of all-reasoning and no-reasoning answers."""
    without_reasoning = prices.cost(TokenCounts(0, 0, 0, 0, totals.output_tokens, 0))
    return max(without_reasoning, prices.cost(TokenCounts(0, 0, 0, 0, totals.output_tokens, totals.output_tokens)))


def _add_costs(costs: list[str | None]) -> str | None:
    """Return the sum, or None if any cost is unknown."""
    amounts = [Decimal(cost) for cost in costs if cost is not None]
    return format_cost(sum_exact(amounts)) if len(amounts) == len(costs) else None


def _max_output_tokens(request: _CostRequest) -> int | None:
    """Return the maximum of tokens in the answers, or None if the request sets no limit."""
    if request.url in ENDPOINTS_WITHOUT_OUTPUT:
        return 0
    body = request.body
    limits = map(_parse_count, (body.max_completion_tokens, body.max_tokens, body.max_output_tokens))
    limit = next((limit for limit in limits if limit is not None), None)
    return None if limit is None else limit * max(1, _parse_count(body.n) or 1, _parse_count(body.best_of) or 1)


def _parse_count(value: Raw) -> int | None:
    text = bytes(value)
    return int(text) if text.isdigit() and len(text) <= MAX_LIMIT_DIGITS else None


def _parse_request(line: bytes) -> _CostRequest | None:
    """Return the fields that matter for the cost, or None if the line is not a request."""
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # lone surrogates are valid JSON, but msgspec rejects them
        fields = read_members(line, "url", "body")
        body = read_members(fields["body"], *_CostFields.__struct_fields__)
        url, model = (msgspec.json.decode(raw, type=str) for raw in (fields["url"], body.pop("model")))
        return _CostRequest(url, _CostFields(model, **{name: Raw(text) for name, text in body.items()}))
    except (KeyError, ValueError):
        return None
