"""Make the table of what was picked up from sources."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table and its indexes."""
    op.create_table(
        "source_files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("source_id", sa.String(36), nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("sync_id", sa.String(64), nullable=False),
        sa.Column("taken_at", sa.BigInteger, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("place_id", sa.String(64), nullable=False),
        sa.Column("writes_back", sa.Boolean, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("written_generation", sa.Integer),
    )
    op.create_index("source_files_by_place", "source_files", ["place_id"], unique=True)
    op.create_index("source_files_by_batch", "source_files", ["batch_id"], unique=True)
    op.create_index("source_files_by_start", "source_files", ["source_id", "started_at"])
