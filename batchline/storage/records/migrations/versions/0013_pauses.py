"""Keep the pause of a batch and how often it was paused, and list paused batches by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the columns; no batch is paused yet."""
    op.add_column("batches", sa.Column("paused_at", sa.BigInteger))
    op.add_column("batches", sa.Column("pause_code", sa.String(32)))
    op.add_column("batches", sa.Column("pause_message", sa.Text))
    op.add_column("batches", sa.Column("pauses", sa.Integer, nullable=False, server_default="0"))
    op.add_column("listed_batches", sa.Column("is_paused", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index(
        "listed_batches_by_pause",
        "listed_batches",
        ["created_at", "batch_id"],
        sqlite_where=sa.text("is_paused = 1"),
        postgresql_where=sa.text("is_paused = true"),
    )
