"""Make the table in which processes that share the sending of a batch tell each other how it goes."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "senders",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sender", sa.String(32), primary_key=True),
        sa.Column("report", sa.Text, nullable=False),
    )
