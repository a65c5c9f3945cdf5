"""The tree of errors."""

import inspect
import pickle

import pytest

from batchline.models import errors
from batchline.models.errors import BatchEnded, BatchlineError, InvalidInput, LeaseLost, StorageFault

TREE = [error for _, error in inspect.getmembers(errors, inspect.isclass)]


def test_error_tree_has_one_root_with_at_most_six_children():
    assert all(issubclass(error, BatchlineError) for error in TREE)
    assert len(BatchlineError.__subclasses__()) <= 6


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_error_is_listed_in_module_docstring(error):
    assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("no", param="endpoint"),
        StorageFault("disk full"),
        LeaseLost("gone"),
        BatchEnded("failed", batch_id="batch-1", status="failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_survives_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
