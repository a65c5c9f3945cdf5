"""Limits on what a batch is created with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchline.models.batches import CreateBatchRequest, validate_metadata, window_seconds
from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings


def request(**fields):
    return CreateBatchRequest(**({"input_file_id": "file-1", "endpoint": "/v1/chat/completions"} | fields))


@given(st.integers(1, 999_999_999), st.sampled_from([("m", 60), ("h", 3_600), ("d", 86_400)]))
def test_a_window_is_a_number_of_minutes_hours_or_days(number, unit):
    letter, seconds = unit
    assert window_seconds(f"{number}{letter}") == number * seconds


@pytest.mark.parametrize(
    "window",
    ["", "24", "h", "24 h", "24H", "0h", "01h", "-1h", "+1h", "1.5h", "1w", "24h\n", " 24h", "٢h", "1" * 10 + "h"],
    ids=repr,
)
def test_anything_else_is_refused_with_an_example_of_what_is_not(window):
    with pytest.raises(InvalidInput, match="'90m', '24h' or '7d'") as refused:
        window_seconds(window)
    assert refused.value.param == "completion_window"


def test_a_request_with_a_bad_window_is_refused():
    with pytest.raises(ValidationError, match="completion_window"):
        request(completion_window="soon")


def test_a_request_without_a_window_has_a_day():
    assert request().completion_window == "24h"


@pytest.mark.parametrize(("window", "seconds"), [("1m", 60), ("7d", 604_800)])
def test_the_bounds_of_allowed_windows_are_allowed(window, seconds):
    assert Settings().require_window_s(window) == seconds


@pytest.mark.parametrize("window", ["8d", "10081m"])
def test_a_window_over_the_bounds_is_refused_with_the_bounds(window):
    with pytest.raises(InvalidInput, match="allowed is 1m to 7d"):
        Settings().require_window_s(window)


FITTING = {"none": None, "empty": {}, "sixteen": {str(n): "" for n in range(16)}, "long": {"k" * 64: "v" * 512}}
TOO_MUCH = {
    "17 pairs, at most 16": {str(n): "" for n in range(17)},
    "65 characters, at most 64": {"k" * 65: "v"},
    "513 characters, at most 512": {"k": "v" * 513},
}


@pytest.mark.parametrize("metadata", FITTING.values(), ids=FITTING)
def test_metadata_at_its_limits_is_kept_as_it_is(metadata):
    assert validate_metadata(metadata) == request(metadata=metadata).metadata == metadata


@pytest.mark.parametrize(("says", "metadata"), TOO_MUCH.items(), ids=TOO_MUCH)
def test_metadata_over_a_limit_is_refused_with_the_limit(says, metadata):
    with pytest.raises(ValidationError, match=says):
        request(metadata=metadata)


def test_metadata_of_other_than_strings_is_refused():
    with pytest.raises(ValidationError, match=r"metadata\.k"):
        request(metadata={"k": 1})
