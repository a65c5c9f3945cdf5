"""Make the tables of files and batches."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables and their indexes."""
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("sha256", sa.String(64)),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
    )
    op.create_table("batches", *_batch_columns())
    op.create_index("batches_by_flow_run", "batches", ["flow_run_id"], unique=True)
    op.create_index("batches_by_creation", "batches", ["created_at"])
    op.create_index("batches_by_status", "batches", ["status", "created_at"])


def _batch_columns() -> list[sa.Column[Any]]:
    columns: list[sa.Column[Any]] = [
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("input_filename", sa.Text, nullable=False),
        sa.Column("completion_window", sa.String(16), nullable=False),
        sa.Column("output_file_id", sa.String(64)),
        sa.Column("error_file_id", sa.String(64)),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    ]
    states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return [
        *columns,
        *(sa.Column(f"{state}_at", sa.BigInteger) for state in states),
        *(sa.Column(count, sa.BigInteger, nullable=False) for count in ("total", "completed", "failed")),
        *(sa.Column(text, sa.Text) for text in ("metadata", "errors", "analytics", "dwext")),
        sa.Column("member_id", sa.String(36)),
        sa.Column("flow_run_id", sa.String(64)),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_at", sa.Double),
        sa.Column("output_expires_after", sa.BigInteger),
    ]
