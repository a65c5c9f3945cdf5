"""`batchline keys`: API keys."""

import time

import cyclopts
import msgspec

from batchline.cli.console import print_json, print_object
from batchline.cli.options import JsonFlag
from batchline.cli.tables import Column, plain, print_rows
from batchline.client import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.client.arguments import parse_arguments
from batchline.models.api_keys import KeyLimits, Role
from batchline.models.formatting import format_age

COLUMNS = tuple(Column(name) for name in ("key", "member", "state", "role", "ends in", "age", "limits"))

app = cyclopts.App(name="keys", help="Create, list and revoke API keys.", help_format="plaintext")


@app.command
def create(
    name: str,
    /,
    *,
    role: Role = "member",
    max_upload_bytes: int | None = None,
    max_open_batches: int | None = None,
    requests_per_minute: int | None = None,
    json: JsonFlag = False,
) -> None:
    """Create a key for a member and print it; it is shown only once.

    Parameters
    ----------
    name:
        Name of the member, new or with keys already.
    role:
        A member sees only their own files and batches; a manager sees and changes those of all.
    max_upload_bytes:
        Maximum size of an uploaded file, decompressed.
    max_open_batches:
        Maximum number of the member's unfinished batches when another is created.
    requests_per_minute:
        Maximum number of requests per minute.
    """
    limits = parse_arguments(
        KeyLimits,
        max_upload_bytes=max_upload_bytes,
        max_open_batches=max_open_batches,
        requests_per_minute=requests_per_minute,
    )
    key = ApiKeys(Batchline(origin="cli")).create(name, role=role, limits=limits)
    print_object(key, json=json, result=key.token, note=f"{key.id} of {role} {name}; it is not shown again")


@app.command(name="list")
def list_(*, json: JsonFlag = False) -> None:
    """List keys, newest first, including revoked ones."""
    keys = ApiKeys(Batchline(origin="cli")).list()
    if json:
        print_json({"data": [msgspec.Raw(key.to_json()) for key in keys]})
        return
    rows = []
    for key in keys:
        age = format_age(time.time() - key.created_at)
        limits = ", ".join(
            f"{name.replace('_', ' ')} {limit:,}"
            for name in KeyLimits.model_fields
            if (limit := getattr(key, name)) is not None
        )
        state, member = "revoked" if key.revoked_at else "valid", key.member
        rows.append((key.id, plain(member.name), state, member.role, f"…{key.hint}", age, limits))
    print_rows(rows, COLUMNS, none="no keys")


@app.command
def revoke(key_id: str, /, *, json: JsonFlag = False) -> None:
    """Revoke a key with immediate effect.

    Parameters
    ----------
    key_id:
        Id of the key, as in `keys list`.
    """
    key = ApiKeys(Batchline(origin="cli")).revoke(key_id)
    print_object(key, json=json, note=f"revoked {key.id} of {key.member.name}")
