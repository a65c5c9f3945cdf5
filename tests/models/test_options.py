"""Options of a batch."""

import pytest
from pydantic import ValidationError

from batchline.models.options import BatchOptions

WRONG = {
    "on_truncated": ["retry", "", None],
    "on_invalid_output": ["drop", True],
    "max_identical_failures": [0, -1, "many", 1.5],
    "on_limit": ["wait", None],
    "no_such_option": [1],
}


def test_defaults_are_those_of_the_contract():
    assert BatchOptions().model_dump() == {
        "on_truncated": "keep",
        "on_invalid_output": "keep",
        "max_identical_failures": 25,
        "on_limit": "pause",
    }


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value_is_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(ValidationError, match=name):
            BatchOptions.model_validate({name: value})


def test_default_of_on_limit_gives_way_to_one_that_was_given():
    assert BatchOptions().with_default_on_limit("stop").on_limit == "stop"
    assert BatchOptions(on_limit="pause").with_default_on_limit("stop").on_limit == "pause"


def test_options_that_were_given_survive_storing():
    options = BatchOptions(on_truncated="fail", max_identical_failures=25)

    assert options.given() == {"on_truncated": "fail", "max_identical_failures": 25}
    assert BatchOptions.model_validate(options.given()) == options


def test_each_option_has_a_title_and_a_sentence_for_the_form():
    for name, field in BatchOptions.model_json_schema()["properties"].items():
        assert field["title"][0].isupper(), name
        assert field["description"].endswith("."), name
