"""Keep the options that a batch was given, and what it does at a limit unless that is one of them."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the columns; the batches before this version have no options."""
    op.add_column("batches", sa.Column("options", sa.Text))
    op.add_column("batches", sa.Column("default_on_limit", sa.String(8)))
