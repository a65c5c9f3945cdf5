"""Options of a batch: checked when it is created, kept as long as it exists, and known to its senders."""

import asyncio

import pytest
from helpers.request_files import write_requests

from batchline import AsyncBatchline
from batchline.engine.lease import acquire_lease
from batchline.engine.remote_sender import RemoteSender
from batchline.models.errors import InvalidInput
from batchline.models.options import BatchOptions

GIVEN = {"on_truncated": "fail", "max_identical_failures": 25}


def stored(here, tmp_path, count=2, **options):
    return here.client.files.create(file=write_requests(tmp_path / "r.jsonl", count, **options))


def test_options_are_shown_as_given_and_kept_by_retry_and_resume(make_client, tmp_path):
    here = make_client(simulator={"server_error": 0.5}, upstream={"max_attempts": 1})
    file = stored(here, tmp_path, 30)
    batch = here.client.batches.create(input_file_id=file.id, options=GIVEN, via=None)
    assert here.client.batches.create(input_file_id=file.id, options={}, via=None).options is None

    here.client.batches.pause(batch.id)
    here.client.batches.resume(batch.id)
    ended = here.client.batches.wait(batch.id, timeout_s=60)
    here.client.batches.retry(batch.id)
    retried = here.client.batches.wait(batch.id, timeout_s=60)

    assert ended.request_counts.failed
    for shown in (batch, ended, retried, here.client.batches.list(search=batch.id).data[0]):
        assert shown.options == BatchOptions(**GIVEN)
        assert shown.model_dump()["options"] == GIVEN


def test_options_are_accepted_as_model_by_both_clients(make_client, tmp_path):
    here = make_client()
    file, options = stored(here, tmp_path), BatchOptions(on_invalid_output="retry")

    async def create():
        client = AsyncBatchline(services=here.client.services)
        return await client.batches.create(input_file_id=file.id, options=options, via=None)

    for batch in (
        asyncio.run(create()),
        here.client.batches.create(input_file_id=file.id, options=options, via=None),
    ):
        assert batch.model_dump()["options"] == {"on_invalid_output": "retry"}


WRONG = {
    "options.on_truncated": ({"on_truncated": "drop"}, "'keep' or 'fail'"),
    "options.on_invalid_output": ({"on_invalid_output": None}, "'keep', 'fail' or 'retry'"),
    "options.max_identical_failures": ({"max_identical_failures": 0}, "greater than or equal to 1"),
    "options.on_limit": ({"on_limit": 1}, "'pause' or 'stop'"),
    "options": ({"on_truncate": "fail"}, "no option 'on_truncate'.*on_truncated, on_invalid_output"),
}


def test_invalid_option_is_named_with_what_is_allowed(make_client, tmp_path):
    here = make_client()
    file = stored(here, tmp_path)
    for param, (options, allowed) in WRONG.items():
        with pytest.raises(InvalidInput, match=f"{param}: .*{allowed}") as raised:
            here.client.batches.create(input_file_id=file.id, options=options)
        assert raised.value.param == param
    with pytest.raises(InvalidInput, match=r"options: .*dictionary"):
        here.client.batches.create(input_file_id=file.id, options="fail")
    assert list(here.client.batches.list()) == []


def test_idempotency_key_with_other_options_is_rejected(make_client, tmp_path):
    here = make_client()
    file = stored(here, tmp_path)

    def create(options):
        return here.client.batches.create(input_file_id=file.id, options=options, idempotency_key="once", via=None)

    batch = create(GIVEN)

    assert create(dict(reversed(GIVEN.items()))).id == batch.id
    for other in (None, {"on_truncated": "fail"}, {**GIVEN, "on_limit": "pause"}):
        with pytest.raises(InvalidInput, match="Idempotency-Key"):
            create(other)


def test_runner_and_remote_sender_know_effective_options(make_client, tmp_path):
    here = make_client()
    services = here.client.services
    batch = here.client.batches.create(
        input_file_id=stored(here, tmp_path).id, options=GIVEN, default_on_limit="stop", via=None
    )
    expected = BatchOptions(**GIVEN, on_limit="stop")

    with acquire_lease(services, batch.id) as lease:
        assert lease.options == expected
        sender = RemoteSender(services, lease.records.get_batch(batch.id), lease.claim.epoch)
        assert sender.options == expected
        sender.session.close()
