"""An upstream: where a request goes, and what is refused as a configuration."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchline.models.settings import ENDPOINTS
from batchline.models.upstreams import Upstream, dialect_of


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://h", "http://h/v1/embeddings"),
        ("http://h/", "http://h/v1/embeddings"),
        ("http://h/v1", "http://h/v1/embeddings"),
        ("http://h/v1/", "http://h/v1/embeddings"),
        ("http://h:8000/openai/v1", "http://h:8000/openai/v1/embeddings"),
        ("http://h/openai", "http://h/openai/v1/embeddings"),
        ("http://h/xv1", "http://h/xv1/v1/embeddings"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/embeddings"),
    ],
)
def test_base_url_ending_in_v1_is_not_doubled(base_url, url):
    assert Upstream(base_url=base_url).url_for("/v1/embeddings") == url


def test_path_of_other_api_version_is_kept():
    assert Upstream(base_url="http://h/v1").url_for("/v2/rerank") == "http://h/v1/v2/rerank"


@given(st.sampled_from(ENDPOINTS), st.sampled_from(["", "/", "/v1", "/v1/", "/proxy", "/proxy/v1/"]))
def test_url_has_v1_once_and_no_empty_segment(path, suffix):
    url = Upstream(base_url=f"https://h{suffix}").url_for(path)
    assert url.startswith("https://h/")
    assert url.endswith(path)
    assert url.count("/v1") == 1
    assert "//" not in url.removeprefix("https://")


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "localhost:8000",
        "ftp://h/v1",
        "http://",
        "http:///v1",
        "file:///etc/passwd",
        "http://user:hunter2@h/v1",
        "http://user@h/v1",
        "http://h/v1?key=hunter2",
        "http://h/v1#hunter2",
        "http://h:hunter2/v1",
        "http://h:0/v1",
        "http://h:65536/v1",
        "http://[::1/v1",
    ],
    ids=repr,
)
def test_invalid_base_url_is_rejected_without_showing_it(base_url):
    with pytest.raises(ValidationError, match="base_url") as refused:
        Upstream(base_url=base_url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("base_url", "right"),
    [
        ("http://h:8000/v1/chat/completions", "http://h:8000/v1"),
        ("http://h/v1/chat/completions/", "http://h/v1"),
        ("http://h/v1/completions", "http://h/v1"),
        ("https://h/openai/v1/embeddings", "https://h/openai/v1"),
        ("https://h/v1/responses", "https://h/v1"),
        ("https://h/v1/messages", "https://h/v1"),
        ("https://h/v1/moderations", "https://h/v1"),
        ("https://h/chat/completions", "https://h"),
        ("https://h/chat/completions?api-version=hunter2", "https://h"),
    ],
)
def test_base_url_ending_in_endpoint_is_rejected_with_correction(base_url, right):
    with pytest.raises(ValidationError, match=f"write {re.escape(right)}( |$)") as refused:
        Upstream(base_url=base_url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("api_key", ["hunter2\n", " hunter2", "hunter2\r\nX-Evil: 1", "hünter2"], ids=repr)
def test_api_key_invalid_in_header_is_rejected_without_showing_it(api_key):
    with pytest.raises(ValidationError, match="api_key") as refused:
        Upstream(base_url="http://h", api_key=api_key)
    assert "nter2" not in str(refused.value)


@pytest.mark.parametrize(
    "headers",
    [{"x-team": "hunter2\r\nhost: b"}, {"x-team\r\n": "hunter2"}, {"x team": "hunter2"}, {"": "hunter2"}],
    ids=["line break in a value", "line break in a name", "space in a name", "no name"],
)
def test_invalid_header_is_rejected_without_showing_its_value(headers):
    with pytest.raises(ValidationError, match="headers") as refused:
        Upstream(base_url="http://h", headers=headers)
    assert "nter2" not in str(refused.value)


def test_min_in_flight_above_max_is_rejected():
    with pytest.raises(ValidationError, match="min_in_flight is above max_in_flight"):
        Upstream(base_url="http://h", min_in_flight=3, max_in_flight=2)


def test_unknown_upstream_field_is_rejected_by_name():
    with pytest.raises(ValidationError, match="max_inflight"):
        Upstream.model_validate({"base_url": "http://h", "max_inflight": 3})


def test_upstream_repr_and_dump_hide_secrets():
    upstream = Upstream(base_url="http://h", api_key="hunter2", headers={"x-team": "hunter2"})
    assert "hunter2" not in f"{upstream!r} {upstream} {upstream.model_dump_json()}"


@pytest.mark.parametrize(
    ("models", "serves"),
    [(None, True), ({"a", "b"}, True), ({"b"}, False), (set(), False)],
    ids=["no list", "one with it", "one without it", "an empty one"],
)
def test_upstream_without_model_list_serves_every_model(models, serves):
    assert Upstream(base_url="http://h", models=models).serves("a") is serves


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_only_messages_endpoint_uses_anthropic_dialect(endpoint):
    assert dialect_of(endpoint) == ("anthropic" if endpoint == "/v1/messages" else "openai")
