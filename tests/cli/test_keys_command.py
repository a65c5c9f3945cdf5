"""`batchline keys`: made, shown once, listed, revoked."""

import json

import pytest

from batchline import Batchline
from batchline.client.api_keys import ApiKeys


def test_keys_create_prints_token_once_on_stdout(run_cli):
    ended = run_cli("keys", "create", "alice", "--role", "manager", "--requests-per-minute", "5")

    token = ended.out.strip()
    key = ApiKeys(Batchline()).find_by_token(token)
    assert (ended.status, key.name, key.role, key.requests_per_minute) == (0, "alice", "manager", 5)
    assert token not in ended.err
    assert token not in run_cli("keys", "list").out + run_cli("keys", "list", "--json").out


def test_keys_list_shows_newest_first_with_members_and_limits(run_cli):
    run_cli("keys", "create", "alice")
    run_cli("keys", "create", "alice", "--max-open-batches", "7")

    found = json.loads(run_cli("keys", "list", "--json").out)["data"]

    assert [(key["member"]["name"], key.get("max_open_batches")) for key in found] == [
        ("alice", 7),
        ("alice", None),
    ]
    assert len({key["member"]["id"] for key in found}) == 1
    shown = run_cli("keys", "list").out
    assert "max open batches 7" in shown
    assert found[0]["id"] in shown


def test_keys_revoke_invalidates_key(run_cli):
    made = json.loads(run_cli("keys", "create", "alice", "--json").out)

    assert "revoked" in run_cli("keys", "revoke", made["id"]).err
    assert ApiKeys(Batchline()).find_by_token(made["token"]) is None
    assert "revoked" in run_cli("keys", "list").out
    assert json.loads(run_cli("keys", "revoke", made["id"], "--json").out)["revoked_at"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["revoke", "key-none"], "there is no key key-none"),
        (["create", " "], "no name"),
        (["create", "alice", "--max-open-batches", "0"], "max_open_batches"),
        (["create", "alice", "--role", "king"], "king"),
        (["create", "boss"], "boss is a manager"),
    ],
    ids=["an unknown key", "no name", "no batches at all", "another role", "another role than before"],
)
def test_keys_usage_error_exits_with_2(arguments, words, run_cli):
    run_cli("keys", "create", "boss", "--role", "manager")

    ended = run_cli("keys", *arguments)

    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err


def test_keys_list_without_keys_prints_no_keys(run_cli):
    assert run_cli("keys", "list").out == "no keys\n"
