"""Make lists of many batches quick: a narrow table for them with its indexes.

Earlier versions of this script also made a trigram index, which 0012 drops; a new database never has one.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ROWS_AT_ONCE = 1_000
LATE = ("completed", "failed", "cancelled")


def upgrade() -> None:
    """Make the table, fill it from the batches, and index what is looked for."""
    listed = op.create_table("listed_batches", *_columns())
    _fill(listed)
    op.create_index("listed_batches_by_id", "listed_batches", ["batch_id"], unique=True)
    for name, columns in {"creation": [], "state": ["state"], "member": ["member_id"]}.items():
        op.create_index(f"listed_batches_by_{name}", "listed_batches", [*columns, "created_at", "batch_id"])
    both = ["member_id", "state", "created_at", "batch_id"]
    op.create_index("listed_batches_by_member_and_state", "listed_batches", both)

    op.drop_index("batches_by_creation", "batches")
    op.drop_index("batches_by_status", "batches")
    for role in ("input", "output", "error"):
        op.create_index(f"batches_by_{role}_file", "batches", [f"{role}_file_id"])

    op.add_column("files", sa.Column("member_id", sa.String(36)))
    op.create_index("files_by_creation", "files", ["created_at", "id"])
    op.create_index("files_by_purpose", "files", ["purpose", "created_at", "id"])


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("batch_id", sa.String(64).with_variant(sa.String(64, "C"), "postgresql"), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("member_id", sa.String(36)),
        sa.Column("search_text", sa.Text, nullable=False),
    ]


def _fill(listed: sa.Table) -> None:
    connection = op.get_bind()
    for rows in _batches(connection):
        connection.execute(sa.insert(listed), [_listed(row) for row in rows])


def _batches(connection: sa.Connection) -> Iterator[list[dict[str, Any]]]:
    """Yield what the rows follow from, some batches at a time."""
    ends = ("completed_at", "failed_at", "expired_at", "cancelled_at")
    names = ("id", "status", "created_at", "expires_at", "member_id", "input_filename", "metadata", *ends)
    batches = sa.table("batches", *(sa.column(name) for name in names))
    last = ""
    while True:
        some = sa.select(batches).where(batches.c.id > last).order_by(batches.c.id).limit(ROWS_AT_ONCE)
        rows = [{**row} for row in connection.execute(some).mappings()]
        if not rows:
            return
        yield rows
        last = rows[-1]["id"]


def _listed(batch: Mapping[str, Any]) -> dict[str, Any]:
    ends = (batch[f"{state}_at"] for state in ("completed", "failed", "expired", "cancelled"))
    ended_at = max((at for at in ends if at is not None), default=0)
    late = batch["status"] in LATE and ended_at > batch["expires_at"]
    return {
        "batch_id": batch["id"],
        "created_at": batch["created_at"],
        "state": batch["status"] + (" late" if late else ""),
        "expires_at": batch["expires_at"],
        "member_id": batch["member_id"],
        "search_text": _search_text(batch),
    }


def _search_text(batch: Mapping[str, Any]) -> str:
    metadata = json.loads(batch["metadata"] or "{}")
    texts = (batch["id"], batch["input_filename"], *(text for pair in metadata.items() for text in pair))
    kept_as = {0: "\ufdd1", 0xFDD0: "\ufffd", 0xFDD1: "\ufffd"}
    return "\ufdd0".join(text.casefold().translate(kept_as) for text in texts)
