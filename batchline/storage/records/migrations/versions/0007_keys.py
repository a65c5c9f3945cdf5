"""Room for members and their keys, and for what makes a request to create a batch safe to repeat."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the tables, and the indexes for lists of a member's files."""
    op.create_table(
        "members",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("members_by_name", "members", ["name"], unique=True)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("member_id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("max_upload_bytes", sa.BigInteger),
        sa.Column("max_open_batches", sa.BigInteger),
        sa.Column("requests_per_minute", sa.BigInteger),
    )
    op.create_index("api_keys_by_sha256", "api_keys", ["sha256"], unique=True)
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
    )
    op.create_index("idempotency_keys_by_batch", "idempotency_keys", ["batch_id"])
    op.create_index("files_by_member", "files", ["member_id", "created_at", "id"])
    op.create_index("files_by_member_and_purpose", "files", ["member_id", "purpose", "created_at", "id"])
