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
def test_window_is_number_of_minutes_hours_or_days(number, unit):
    letter, seconds = unit
    assert window_seconds(f"{number}{letter}") == number * seconds


@pytest.mark.parametrize(
    "window",
    ["", "24", "h", "24 h", "24H", "0h", "01h", "-1h", "+1h", "1.5h", "1w", "24h\n", " 24h", "٢h", "1" * 10 + "h"],
    ids=repr,
)
def test_invalid_window_is_rejected_with_valid_examples(window):
    with pytest.raises(InvalidInput, match="'90m', '24h' or '7d'") as refused:
        window_seconds(window)
    assert refused.value.param == "completion_window"


def test_create_request_with_invalid_window_is_rejected():
    with pytest.raises(ValidationError, match="completion_window"):
        request(completion_window="soon")


def test_create_request_window_defaults_to_24h():
    assert request().completion_window == "24h"


@pytest.mark.parametrize(("window", "seconds"), [("1m", 60), ("7d", 604_800)])
def test_windows_at_the_limits_are_accepted(window, seconds):
    assert Settings().require_window_s(window) == seconds


@pytest.mark.parametrize("window", ["8d", "10081m"])
def test_window_over_limit_is_rejected_with_limits(window):
    with pytest.raises(InvalidInput, match="allowed is 1m to 7d"):
        Settings().require_window_s(window)


FITTING = {"none": None, "empty": {}, "sixteen": {str(n): "" for n in range(16)}, "long": {"k" * 64: "v" * 512}}
TOO_MUCH = {
    "17 pairs, at most 16": {str(n): "" for n in range(17)},
    "65 characters, at most 64": {"k" * 65: "v"},
    "513 characters, at most 512": {"k": "v" * 513},
}


@pytest.mark.parametrize("metadata", FITTING.values(), ids=FITTING)
def test_metadata_at_its_limits_is_kept_unchanged(metadata):
    assert validate_metadata(metadata) == request(metadata=metadata).metadata == metadata


@pytest.mark.parametrize(("says", "metadata"), TOO_MUCH.items(), ids=TOO_MUCH)
def test_metadata_over_limit_is_rejected_with_limit(says, metadata):
    with pytest.raises(ValidationError, match=says):
        request(metadata=metadata)


def test_metadata_with_non_string_value_is_rejected():
    with pytest.raises(ValidationError, match=r"metadata\.k"):
        request(metadata={"k": 1})
