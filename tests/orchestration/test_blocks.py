"""Blocks as Prefect's pages show them, and as blocks of earlier versions were stored."""

import pytest

from batchline.orchestration.blocks import StorageBlock, UpstreamBlock

SECRETS = [
    (UpstreamBlock, "api_key"),
    (StorageBlock, "database_url"),
    (StorageBlock, "s3_access_key_id"),
    (StorageBlock, "s3_secret_access_key"),
]


@pytest.mark.parametrize(("block", "field"), SECRETS)
def test_secret_field_is_password_in_schema(block, field):
    schema = block.model_json_schema()

    assert {"type": "string", "format": "password", "default": ""}.items() <= schema["properties"][field].items()
    assert field in schema["secret_fields"]


def test_empty_block_fields_are_unset():
    upstream = UpstreamBlock(base_url="http://h/v1").upstream("gpus")

    assert (upstream.api_key, upstream.models, upstream.headers) == (None, None, {})
    assert StorageBlock(storage_url="/jobs").settings() == {"storage_url": "/jobs"}


def test_stored_block_with_null_fields_is_accepted():
    stored = {"base_url": "http://h/v1", "api_key": None, "models": None, "headers": {}}
    store = {"storage_url": "/jobs", "database_url": None, "s3_region": None, "s3_access_key_id": None}

    assert UpstreamBlock.model_validate(stored).upstream("gpus").api_key is None
    assert StorageBlock.model_validate(store).settings() == {"storage_url": "/jobs"}


def test_filled_block_fields_are_set():
    upstream = UpstreamBlock(base_url="http://h/v1", api_key="sk-1", models=["m"]).upstream("gpus")

    assert upstream.api_key is not None
    assert upstream.api_key.get_secret_value() == "sk-1"
    assert upstream.models == {"m"}
