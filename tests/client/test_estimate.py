"""Cost estimates of files: tokens by size, bounds by the requests' own limits, prices by model."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from batchline import Batchline
from batchline.client.estimate import estimate_cost
from batchline.models.errors import InvalidInput, NotFound

PRICES = {"a": {"input": "1", "output": "2"}, "b": {"input": "10", "output": "40"}}


def line(number: int, model: str = "a", *, url: str = "/v1/chat/completions", size: int = 400, **body) -> bytes:
    """A request line of that many bytes, the line break included."""
    request = {"custom_id": f"request-{number}", "method": "POST", "url": url, "body": {"model": model, **body}}
    bare = json.dumps({**request, "pad": ""})
    return json.dumps({**request, "pad": "x" * (size - 1 - len(bare))}).encode() + b"\n"


@pytest.fixture
def estimate(make_services, start_simulator, tmp_path):
    client = Batchline(services=make_services(start_simulator().base_url, prices=PRICES))

    def of(*lines: bytes, name: str = "r.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"".join(lines))
        return estimate_cost(client, path)

    of.client = client
    yield of
    client.close()


def test_estimate_counts_four_bytes_per_token_and_exact_costs(estimate):
    found = estimate(line(1, max_tokens=100), line(2, "b", max_completion_tokens=50, n=3))

    assert (found.requests, found.input_tokens, found.output_tokens_at_most) == (2, 200, 250)
    a, b = found.models
    assert (a.model, a.input_cost, a.output_cost_at_most) == ("a", "0.0001", "0.0002")
    assert (b.model, b.input_cost, b.output_cost_at_most) == ("b", "0.001", "0.006")
    assert Decimal(found.least) == Decimal("0.0011")
    assert Decimal(found.most) == Decimal("0.0073")


@pytest.mark.parametrize("slash", ["/", "\\/"], ids=["plain", "escaped"])
def test_estimate_does_not_count_base64_images_as_text(estimate, slash):
    request = json.loads(line(1, max_tokens=100))
    before = estimate(json.dumps(request).encode())
    request["body"]["image"] = "data:image/png;base64,@=="
    picture = f"iVBORw0KGgoAAAANSUhEUg{slash}Ab+" * 20_000
    found = estimate(json.dumps(request).replace("@", picture).encode())

    assert (before.attachments, found.attachments) == (0, 1)
    assert 1_000 <= found.input_tokens - before.input_tokens < 1_050


def test_estimate_with_unlimited_request_has_no_upper_bound(estimate):
    found = estimate(line(1, max_tokens=100), line(2))

    assert found.without_limit == 1
    assert found.least is not None
    assert found.most is None


def test_estimate_of_embeddings_has_no_output(estimate):
    found = estimate(line(1, url="/v1/embeddings"))

    assert (found.without_limit, found.output_tokens_at_most) == (0, 0)
    assert found.least == found.most


def test_estimate_with_unpriced_model_names_it_and_has_no_total(estimate):
    found = estimate(line(1, max_tokens=1), line(2, "nobodys-model", max_tokens=1))

    assert found.unpriced_models == ["nobodys-model"]
    assert (found.least, found.most) == (None, None)


def test_estimate_counts_unreadable_lines_separately(estimate):
    odd = b'{"custom_id":"d","method":"POST","url":"/v1/embeddings","body":{"model":"a","x":"\\ud800"}}\n'
    found = estimate(b"nonsense\n\n[]\n", line(1, max_tokens=1), odd)

    assert (found.requests, found.unreadable) == (2, 2)


def test_estimate_limits_number_and_name_length_of_models(estimate):
    found = estimate(*(line(number, f"model-{number}") for number in range(1_200)), line(0, "m" * 257))

    assert (len(found.models), found.unreadable) == (1_000, 201)


def test_estimate_accepts_id_of_uploaded_file(estimate, tmp_path):
    path = tmp_path / "up.jsonl"
    path.write_bytes(line(1, max_tokens=100))
    file = estimate.client.files.create(file=path)

    assert estimate_cost(estimate.client, file.id) == estimate(line(1, max_tokens=100))
    with pytest.raises(NotFound):
        estimate_cost(estimate.client, "file-" + "0" * 32)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"nonsense\n"])
def test_estimate_of_file_without_requests_is_rejected(estimate, content):
    with pytest.raises(InvalidInput, match="no request"):
        estimate(content)


def test_estimate_of_missing_path_is_rejected(estimate):
    with pytest.raises(InvalidInput, match=r"nowhere\.jsonl"):
        estimate_cost(estimate.client, Path("nowhere.jsonl"))
