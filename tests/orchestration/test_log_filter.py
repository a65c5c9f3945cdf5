"""Log records of our errors in flow runs."""

import logging

import pytest
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from batchline.models.errors import BatchEnded, Conflict, InvalidInput, StorageFault
from batchline.models.status import BatchStatus
from batchline.orchestration.log_filter import UNEXPECTED_MESSAGE, install_log_filter

ENDED = BatchEnded("batch b failed: 3 failed", batch_id="b", status=BatchStatus.FAILED)


@pytest.mark.parametrize(
    ("error", "message", "told"),
    [
        (ENDED, UNEXPECTED_MESSAGE, None),
        (InvalidInput("no such window"), "Encountered exception during execution", False),
        (Conflict("another has it"), UNEXPECTED_MESSAGE, None),
        (StorageFault("the disk is full"), "Encountered exception during execution", True),
        (StorageFault("the disk is full"), UNEXPECTED_MESSAGE, None),
        (ValueError("a fault"), UNEXPECTED_MESSAGE, True),
    ],
    ids=["a batch's end", "asked wrongly", "said before", "fault", "fault, said before", "not ours"],
)
def test_error_is_logged_once_with_traceback_only_if_useful(error, message, told, caplog):
    install_log_filter()
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}), caplog.at_level(logging.ERROR):
        logging.getLogger("prefect.flow_runs").error(message, exc_info=error)

    assert [bool(record.exc_info) for record in caplog.records] == ([] if told is None else [told])
