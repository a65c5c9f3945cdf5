"""`batchline keys`: API keys."""

import time

import cyclopts
import msgspec

from batchline.cli.console import print_json, print_object
from batchline.cli.options import Flag
from batchline.cli.tables import Column, Row, plain, print_rows
from batchline.client import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.client.arguments import parse_arguments
from batchline.models.api_keys import KeyLimits, KeyObject, Role
from batchline.models.formatting import roughly

COLUMNS = tuple(Column(name) for name in ("key", "member", "state", "role", "ends in", "age", "limits"))

app = cyclopts.App(name="keys", help="Make, list and revoke keys of the API.", help_format="plaintext")


@app.command
def create(
    name: str,
    /,
    *,
    role: Role = "member",
    max_upload_bytes: int | None = None,
    max_open_batches: int | None = None,
    requests_per_minute: int | None = None,
    json: Flag = False,
) -> None:
    """Make a key for a member and print it; it is shown this once.

    Parameters
    ----------
    name:
        Whose key it is: a new member, or one who has keys already.
    role:
        A member has files and batches of their own; a manager sees and touches everybody's.
    max_upload_bytes:
        Largest file that may be uploaded with it, decompressed.
    max_open_batches:
        Most batches of the member that may be unfinished when another is created.
    requests_per_minute:
        Most requests with it in any minute.
    json:
        Print the key as JSON.
    """
    limits = parse_arguments(
        KeyLimits,
        max_upload_bytes=max_upload_bytes,
        max_open_batches=max_open_batches,
        requests_per_minute=requests_per_minute,
    )
    key = _open_keys().create(name, role=role, limits=limits)
    print_object(key, json=json, result=key.token, note=f"{key.id} of {role} {name}; it is not shown again")


@app.command(name="list")
def list_(*, json: Flag = False) -> None:
    """List keys, newest first, the revoked ones as well.

    Parameters
    ----------
    json:
        Print `{"data": [key, …]}`.
    """
    keys = _open_keys().list()
    if json:
        print_json({"data": [msgspec.Raw(key.to_json()) for key in keys]})
        return
    print_rows(map(_key_row, keys), COLUMNS, none="no keys")


@app.command
def revoke(key_id: str, /, *, json: Flag = False) -> None:
    """Let a key open nothing any more, at once.

    Parameters
    ----------
    key_id:
        Id of the key, as `keys list` shows it.
    json:
        Print the key as JSON.
    """
    key = _open_keys().revoke(key_id)
    print_object(key, json=json, note=f"revoked {key.id} of {key.member.name}")


def _open_keys() -> ApiKeys:
    return ApiKeys(Batchline(origin="cli"))


def _key_row(key: KeyObject) -> Row:
    age = roughly(time.time() - key.created_at)
    state = "revoked" if key.revoked_at else "valid"
    limits = ", ".join(
        f"{name.replace('_', ' ')} {limit:,}"
        for name in KeyLimits.model_fields
        if (limit := getattr(key, name)) is not None
    )
    return key.id, plain(key.member.name), state, key.member.role, f"…{key.hint}", age, limits
